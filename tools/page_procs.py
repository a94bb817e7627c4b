"The last of nbdev's processors when pages are made (`procs` in settings.ini): links to what the package promises, tidy signatures."
import os, re
from pathlib import Path
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor
import soft_decoding

UNLINKED = {'forward'}  # mostly the model's own, not ours
FENCE = re.compile(r'(^ *(`{3,}|~{3,}).*?^ *\2[^\S\n]*$)', re.S | re.M)  # text, fence, its ticks, text, ...
NAME = re.compile(r'(?P<kept>\[[^\]]*\]\([^)]*\)|^#.*$|^ {4}.*$|``.*?``)|`(?P<name>[A-Za-z][\w.]*)(?P<call>\(\))?`', re.M)
SIGNATURE = [(re.compile(r'\b__main__\.'), ''), (re.compile(r'<(?:function|class) \'?([\w.]+)\'?(?: at 0x[0-9a-f]+)?>'), r'\1'),
             (re.compile(r':NoneType=None'), '=None')]
SILENT = re.compile(r'\s*```python\s+def \w+\(\s*\*args, \*\*kw\w+\s*\):\s+```')  # of a class whose signature says nothing


def target(name, page):
    "Where the site explains `name`, as seen from the notebook `page`; None when it is no public name."
    symbol = name.removeprefix('soft_decoding.').split('.')[0]  # a method is explained with its class
    found = symbol in soft_decoding.__all__ and symbol not in UNLINKED and NbdevLookup().doc(symbol)
    if not found: return None
    cfg = get_config()
    return os.path.relpath(found.removeprefix(cfg.doc_host + cfg.doc_baseurl + '/'), Path(page).parent)


def linked(markdown, page):
    "`markdown` with a link on each public name in backticks; headings, links and code are left as they are."
    def link(m):
        to = m['name'] and target(m['name'], page)
        return f"[{m[0]}]({to})" if to else m[0]
    parts = FENCE.split(markdown)
    parts[::3] = [NAME.sub(link, prose) for prose in parts[::3]]
    return ''.join(part for i, part in enumerate(parts) if i % 3 != 2)


def tidy(markdown):
    "Signatures as a reader would write them: no module of the moment, no addresses in memory."
    parts = FENCE.split(SILENT.sub('', markdown))
    for pattern, new in SIGNATURE: parts[1::3] = [pattern.sub(new, code) for code in parts[1::3]]
    return ''.join(part for i, part in enumerate(parts) if i % 3 != 2)


def shown(output, page):
    "The lines of a markdown output, tidied and linked."
    lines = output['data']['text/markdown']
    output['data']['text/markdown'] = linked(tidy(lines if isinstance(lines, str) else ''.join(lines)), page)


def printed_twice(cell, after):
    "Whether `cell` shows a signature and `after`, the next one, the whole source."
    return getattr(cell, 'has_sd', False) and 'exports' in (getattr(after, 'directives_', None) or {}) and after.get('source')


def without_signature(markdown):
    "What nbdev says of a function, less its first block of code."
    return re.sub(r'\n*^```python\n.*?^```$', '', markdown, count=1, flags=re.S | re.M)


class page_links(Processor):
    "In the place of nbdev's `add_links`, which links every word that is also the name of some function."
    def begin(self): self.page = Path(self.nb.path_).resolve().relative_to(get_config().nbs_path.resolve())

    def cell(self, cell):
        if cell.cell_type == 'markdown' and cell.get('source'): cell.source = linked(cell.source, self.page)
        for output in cell.get('outputs', []):
            if 'text/markdown' in output.get('data', {}): shown(output, self.page)

    def end(self):
        for cell, after in zip(self.nb.cells, self.nb.cells[1:]):
            if not printed_twice(cell, after): continue
            for output in cell.outputs: output['data']['text/markdown'] = without_signature(output['data']['text/markdown'])


if __name__ == '__main__':  # what must be linked, what must not, and what a signature must lose
    words = '`soft_generate`, `generate`, `forward`, `Think.end`, [`x`](y)\n\n# `Think`\n\n```python\n# `Think`\n```\n'
    wanted = words.replace('`soft_generate`', '[`soft_generate`](../decode.html#soft_generate)')
    wanted = wanted.replace('`Think.end`', '[`Think.end`](../think.html#think)')
    assert linked(words, 'research/page.ipynb') == wanted, linked(words, 'research/page.ipynb')
    code = '```python\ndef f(\n    a:__main__.B=B(by=<function g at 0x7f3461ac8680>), # `B`\n    c:NoneType=None\n):\n```'
    assert tidy(code) == '```python\ndef f(\n    a:B=B(by=g), # `B`\n    c=None\n):\n```', tidy(code)
    silent = '### Phase\n\n```python\n\ndef Phase(\n    *args, **kwds\n):\n\n\n```\n\n*Where a row stands.*'
    assert tidy(silent) == without_signature(silent) == '### Phase\n\n*Where a row stands.*', tidy(silent)
    print('as they should be')
