"Check that modules import only what stands above them, in the order of the pages, and no private name of another."
import ast, re, sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
PACKAGE = 'soft_decoding'


def modules():
    "The modules in the order of their pages: 00_dist, 01_soft_embed, 01a_cache, ..."
    pages = sorted(TOP.glob('nbs/[0-9]*.ipynb'))
    found = (re.search(r'#\| *default_exp (\w+)', page.read_text(encoding='utf-8')) for page in pages)
    return [m[1] for m in found if m]


def imported(path):
    "Pairs of a neighbour and the names that a module takes from it, also inside functions."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.ImportFrom): continue
        inside = node.level == 1 or (node.module or '').startswith(PACKAGE + '.')
        if inside and node.module: yield node.module.split('.')[-1], [a.name for a in node.names]


def problems(order):
    "One line for each import that runs up, or takes a private name."
    for here in order:
        for there, names in imported(TOP/PACKAGE/f'{here}.py'):
            if there in order and order.index(there) >= order.index(here):
                yield f'{here} imports {there}, whose page comes later'
            yield from (f'{here} imports {name} of {there}, which is private' for name in names if name.startswith('_'))


if __name__ == '__main__':
    order = modules()
    wrong = list(problems(order))
    print(*wrong or [f'{len(order)} modules, imports run down: {", ".join(order)}'], sep='\n')
    sys.exit(bool(wrong) or not order)
