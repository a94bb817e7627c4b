"""Turn notebooks into pages without Quarto: README.md from nbs/index.ipynb, and every page of the site as HTML."""
import base64, difflib, json, os, re, shutil, subprocess, sys
from argparse import ArgumentParser
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
NBS = TOP/'nbs'
CODE = re.compile(r'((?<!`)(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`))', re.S)  # inline or fenced
LINK = re.compile(r'(?<=\]\()(?![a-z]+:|[#/])([^)\s]+)(?=\))')                # the local ones


# Notebook -> markdown

def text(lines):
    "The text of a notebook field, which may be one string or a list of lines."
    return lines if isinstance(lines, str) else ''.join(lines)


def relinked(markdown, target):
    "`markdown` with `target(path)` in the place of each local link outside of code."
    parts = CODE.split(markdown)  # prose, code, its ticks, prose, code, ...
    parts[::3] = [LINK.sub(lambda found: target(found[1]), prose) for prose in parts[::3]]
    return ''.join(part for i, part in enumerate(parts) if i % 3 != 2)


def split_directives(source):
    "The `#| key: value` lines at the top of a cell, and the rest."
    directives, lines = {}, source.splitlines()
    while lines and re.match(r'#\s*\|', lines[0]):
        key, _, value = re.sub(r'^#\s*\|\s*', '', lines.pop(0)).partition(':')
        directives[key.split()[0] if key.split() else ''] = value.strip().strip('"\'')
    return directives, '\n'.join(lines).strip('\n')


def fenced(body, language=''):
    "A code fence, longer than any inside it."
    ticks = '`' * max(3, *(len(run) + 1 for run in re.findall('`+', body) or ['``']))
    return f"{ticks}{language}\n{body.rstrip()}\n{ticks}"


def shown_output(output, directives, image, rich):
    "One output as markdown; `image(bytes)` stores a picture and returns its link; `rich` prefers HTML to text."
    if output['output_type'] == 'stream': return fenced(text(output['text']))
    if output['output_type'] == 'error': return fenced(f"{output['ename']}: {output['evalue']}")
    data = output['data']
    if 'image/png' in data:
        alt, link = directives.get('fig-alt') or directives.get('fig-cap') or '', image(base64.b64decode(text(data['image/png'])))
        if not rich: return f'![{alt}]({link})'
        return f"![{directives.get('fig-cap', '')}]({link}){{alt=\"{alt}\"}}"
    if rich and 'text/html' in data: return text(data['text/html'])
    if 'text/markdown' in data: return text(data['text/markdown'])
    return fenced(text(data['text/plain'])) if 'text/plain' in data else ''


def folded(code, directives):
    "Code behind a line to click on, where `code-fold` asks for it; `show` leaves it open."
    fold = directives.get('code-fold', 'false')
    if fold == 'false': return code
    opened = ' open' if fold == 'show' else ''
    return f"<details{opened}><summary>{directives.get('code-summary', 'Code')}</summary>\n\n{code}\n\n</details>"


def shown_code(cell, image, rich):
    "A code cell as markdown, under the directives that nbdev and Quarto share."
    directives, source = split_directives(text(cell['source']))
    hidden = {'hide', 'default_exp'} | ({'export', 'exports', 'exporti'} if not rich else set())
    if hidden & directives.keys() or directives.get('include') == 'false': return []
    parts = [folded(fenced(source, 'python'), directives)] if source and directives.get('echo') != 'false' else []
    if directives.get('output') == 'false': return parts
    outputs = [shown_output(o, directives, image, rich) for o in cell['outputs']]
    if rich and outputs and directives.get('output') != 'asis': outputs = ['::: {.cell-output .cell-output-display}', *outputs, ':::']
    return parts + [o for o in outputs if o]


def to_markdown(notebook, image, rich):
    "A notebook as markdown: text cells word for word, code in fences, outputs below."
    parts = []
    for cell in json.loads(Path(notebook).read_text(encoding='utf-8'))['cells']:
        parts += shown_code(cell, image, rich) if cell['cell_type'] == 'code' else [text(cell['source']).strip('\n')]
    return '\n\n'.join(parts) + '\n'


# README.md

def make_readme():
    "The text of README.md and its pictures, as a dictionary from path to bytes."
    files = {}
    def image(data):
        path = f'nbs/images/index-{len(files)+1}.png'
        files[path] = data
        return f'../{path}'  # as seen from nbs/, like every other link
    markdown = to_markdown(NBS/'index.ipynb', image, rich=False)
    files['README.md'] = relinked(markdown, lambda path: os.path.relpath(NBS/path, TOP)).encode()
    return files


def readme(check):
    "Write README.md and its pictures, or with `check` report what differs."
    files = make_readme()
    stale = {str(p.relative_to(TOP)) for p in (NBS/'images').glob('index-*.png')} - files.keys()
    changed = [p for p, data in files.items() if not (TOP/p).is_file() or (TOP/p).read_bytes() != data]
    if not check:
        for path in stale: (TOP/path).unlink()
        for path in changed:
            (TOP/path).parent.mkdir(exist_ok=True)
            (TOP/path).write_bytes(files[path])
        return print('README.md:', 'written' if changed or stale else 'unchanged')
    if not changed and not stale: return print('README.md is in step with nbs/index.ipynb')
    if 'README.md' in changed:
        old = (TOP/'README.md').read_text(encoding='utf-8') if (TOP/'README.md').exists() else ''
        print(*difflib.unified_diff(old.splitlines(), files['README.md'].decode().splitlines(),
                                    'README.md', 'from nbs/index.ipynb', lineterm=''), sep='\n')
    sys.exit(f"out of step: {', '.join(sorted({*changed, *stale}))}; run: python tools/pages.py readme")


# The site

def listed():
    "The groups of nbs/sidebar.yml: a title, and pairs of a text and a notebook."
    import yaml
    groups = yaml.safe_load((NBS/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    return [(g['section'], [(item['text'], item['href']) for item in g['contents']]) for g in groups]


def sidebar():
    "Check that nbs/sidebar.yml lists every page once, and nothing else, and that no two cells of a page share an id."
    hrefs = [href for _, items in listed() for _, href in items]
    found = [p.relative_to(NBS).as_posix() for p in sorted(NBS.rglob('*.ipynb'))]
    found = [page for page in found if not re.search(r'/[._]', '/' + page)]  # checkpoints, drafts
    wrong = [f'not listed: {page}' for page in found if page not in hrefs]
    wrong += [f'no such page: {href}' for href in hrefs if href not in found]
    wrong += [f'listed twice: {href}' for href in sorted(set(hrefs)) if hrefs.count(href) > 1]
    for page in found:
        ids = [cell.get('id') for cell in json.loads((NBS/page).read_text(encoding='utf-8'))['cells']]
        wrong += [f'two cells of {page} have the id {i}' for i in sorted({i for i in ids if ids.count(i) > 1})]
    print(*wrong or [f'{len(hrefs)} pages, each listed once'], sep='\n')
    sys.exit(bool(wrong))


def process():
    "What nbdev does before it calls Quarto; returns the folder of processed notebooks."
    os.chdir(TOP)
    sys.path[:0] = [str(TOP), str(TOP/'tools')]
    import nbdev.doclinks
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    return Path(proc_nbs(force=True))


def output_names(proc):
    "From each processed notebook to the name of its page, which its front matter may set."
    names = {}
    for fn in sorted(proc.rglob('*.ipynb'), key=lambda p: (p != proc/'index.ipynb', p)):
        cells = json.loads(fn.read_text(encoding='utf-8'))['cells']
        found = re.search(r'^output-file:\s*(\S+)', text(cells[0]['source']) if cells else '', re.M)
        names[fn] = fn.with_name(found[1] if found else f'{fn.stem}.html').relative_to(proc)
    return names


def between_pages(markdown, fn, names):
    "Links between notebooks as links between pages, and the local targets that do not exist."
    missing = []
    def target(link):
        path, _, anchor = link.partition('#')
        local = (fn.parent/path).resolve()
        if local in names: return os.path.relpath(names[local], names[fn].parent) + (anchor and f'#{anchor}')
        if not local.exists() and Path(os.path.relpath(local, TOP/'_proc')) not in names.values(): missing.append(link)
        return link
    return relinked(markdown, target), missing


def menu(fn, names, proc):
    "The sidebar as HTML, seen from the page of `fn`; pages that are not here are left out."
    from html import escape
    def item(label, page):
        here = ' aria-current="page"' if page == fn else ''
        return f'<li><a href="{os.path.relpath(names[page], names[fn].parent)}"{here}>{escape(label)}</a></li>'
    groups = [(title, [item(label, proc/href) for label, href in items if proc/href in names]) for title, items in listed()]
    return '\n'.join(f'<p>{title}</p>\n<ul>\n' + '\n'.join(items) + '\n</ul>' for title, items in groups if items)


def page_markdown(fn, names, out):
    "The page of `fn` as markdown, its pictures stored beside it in `out`, and the links that lead nowhere."
    images = []
    def image(data):
        images.append(names[fn].with_name(f'{fn.stem}-{len(images)+1}.png'))
        (out/images[-1]).write_bytes(data)
        (fn.parent/images[-1].name).write_bytes(data)  # where `between_pages` looks
        return images[-1].name
    return between_pages(to_markdown(fn, image, rich=True), fn, names)


def build(fn, names, out):
    "One page as HTML in `out`; returns what is wrong with it."
    import pypandoc
    page, proc = out/names[fn], TOP/'_proc'
    page.parent.mkdir(parents=True, exist_ok=True)
    markdown, missing = page_markdown(fn, names, out)
    up = os.path.relpath(out, page.parent)
    options = dict(to='html5', output=page, bibliography=proc/'references.bib', toc_depth=2, template=TOP/'tools'/'page.html')
    found = subprocess.run(
        [pypandoc.get_pandoc_path(), '--from=markdown+lists_without_preceding_blankline', '--standalone', '--mathml', '--toc',
         '--citeproc', '--metadata=link-citations', f'--css={up}/preview.css', f'--css={up}/styles.css',
         f'--variable=home:{up}/index.html', f'--variable=sidebar:{menu(fn, names, proc)}',
         *(f'--{key.replace("_", "-")}={value}' for key, value in options.items())],
        input=markdown, text=True, encoding='utf-8', cwd=fn.parent, capture_output=True)
    problems = [f'no such link: {m}' for m in missing] + [line for line in found.stderr.splitlines() if line.strip()]
    if found.returncode or not page.exists(): problems.append(f'pandoc ended with {found.returncode}')
    return problems


def html(out):
    "Every page of the site as HTML in `out`; ends with an error when one does not build."
    proc, out, failed = process(), Path(out).resolve(), 0
    names = output_names(proc)
    out.mkdir(parents=True, exist_ok=True)
    for style in (proc/'styles.css', TOP/'tools'/'preview.css'): shutil.copy(style, out)
    if (proc/'images').is_dir(): shutil.copytree(proc/'images', out/'images', dirs_exist_ok=True)
    for fn in names:
        problems = build(fn, names, out)
        failed += bool(problems)
        print(f"{fn.relative_to(proc)} -> {names[fn]}: {'; '.join(problems) or 'ok'}")
    print(f'{len(names)-failed} pages built, {failed} failed')
    sys.exit(bool(failed) or not names)


if __name__ == '__main__':
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('readme', help=readme.__doc__).add_argument('--check', action='store_true')
    commands.add_parser('sidebar', help=sidebar.__doc__)
    commands.add_parser('html', help=html.__doc__).add_argument('out', help='folder for the pages')
    args = parser.parse_args()
    if args.command == 'readme': readme(args.check)
    elif args.command == 'sidebar': sidebar()
    else: html(args.out)
