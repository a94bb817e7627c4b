"Run notebooks in place under nbdev's directives: cells that `nbdev_test` skips keep their outputs."
import os, re, sys, time
from argparse import ArgumentParser
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.all import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.process import NBProcessor


def skipper(fn, cfg, force):
    "A predicate for the cells of `fn` that nbdev would not evaluate, unless their flag is in `force`."
    processed = NBProcessor(fn, process=True).nb.cells
    directives = {c.id: c.directives_ for c in processed if hasattr(c, 'directives_')}
    flags = set(cfg.tst_flags.split()) - set(force)
    def skip(cell):
        if cell.cell_type != 'code' or 'nbdev_export'+'(' in cell.source: return True
        found = directives.get(cell.id) or {}
        return found.get('eval:', [''])[0].lower() == 'false' or bool(flags & found.keys())
    return skip


NOT_FOR_READERS = re.compile(r'[^\n]*it/s\]\n?|[^\n]*(?:Future|Deprecation)Warning: [^\n]*\n(?:  [^\n]*\n)?')  # bars, and news of releases


def tidy(cell):
    "Keep of each printed line what a terminal would still show, without bars, news of releases, and the folders of this machine; drop what is then empty."
    for o in cell.outputs:
        if o.output_type == 'stream':
            text = NOT_FOR_READERS.sub('', ''.join(o.text))
            lines = [re.sub(r'[^\n]*\r(?!\n)', '', line) for line in text.splitlines(True)]
            o['text'] = [re.sub(r'/\S*/site-packages/', '', line) for line in lines]
    cell['outputs'] = [o for o in cell.outputs if o.output_type != 'stream' or ''.join(o.text).strip()]


def run(fn, force=()):
    "Execute, clean and write `fn`; when a cell fails, show where and leave the file as it was."
    fn, cfg, start = Path(fn).absolute(), get_config(), time.time()
    nb, shell, skip = read_nb(fn), CaptureShell(fn), skipper(fn, cfg, force)
    sys.path.insert(0, str(cfg.config_path))
    for cell in nb.cells:
        if not skip(cell): cell['outputs'] = []  # or what a cell no longer prints would stay
    with working_directory(fn.parent):
        try: shell.run_all(nb, exc_stop=True, preproc=skip)
        except Exception:
            print(shell.prettytb(fname=fn), file=sys.stderr)
            return False
    for cell in nb.cells:
        if cell.cell_type == 'code': tidy(cell)
    clean_nb(nb, cfg.clear_all, cfg.allowed_metadata_keys.split(), cfg.allowed_cell_metadata_keys.split(), cfg.clean_ids)
    write_nb(nb, fn)
    print(f'{fn.name}: {time.time()-start:.1f} s')
    return True


if __name__ == '__main__':
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('notebooks', nargs='+')
    parser.add_argument('--flags', default='', help='flags of cells to run all the same, such as "slow"')
    args = parser.parse_args()
    failed = [fn for fn in args.notebooks if not run(fn, args.flags.split())]
    sys.exit(f"failed: {' '.join(failed)}" if failed else 0)
