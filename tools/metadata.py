"Check that pyproject.toml and the package say what settings.ini says, and that no public name is also a module."
import sys
from configparser import ConfigParser
from pathlib import Path
try: import tomllib
except ModuleNotFoundError: import tomli as tomllib  # Python 3.10; comes with `build`

TOP = Path(__file__).resolve().parents[1]
config = ConfigParser()
config.read(TOP/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
pyproject = tomllib.loads((TOP/'pyproject.toml').read_text(encoding='utf-8'))
project, nbdev = pyproject['project'], pyproject['tool']['nbdev']
sys.path.insert(0, str(TOP))
import soft_decoding

pairs = {
    'name': (project['name'], cfg['lib_name']),
    'description': (project['description'], cfg['description']),
    'requires-python': (project['requires-python'], f">={cfg['min_python']}"),
    'author': (project['authors'], [dict(name=cfg['author'], email=cfg['author_email'])]),
    'keywords': (project['keywords'], cfg['keywords'].split()),
    'repository': (project['urls']['Repository'], cfg['git_url']),
    'documentation': (project['urls']['Documentation'], cfg['doc_host'] + cfg['doc_baseurl']),
    'custom_sidebar': (str(nbdev['custom_sidebar']), cfg['custom_sidebar']),
    **{key: (nbdev[key], cfg[key]) for key in 'lib_path nbs_path doc_path branch tst_flags title skip_procs procs'.split()},
    '__version__': (soft_decoding.__version__, cfg['version']),
    'version in CITATION.cff': (f"\nversion: {cfg['version']}\n" in (TOP/'CITATION.cff').read_text(encoding='utf-8'), True),
}
wrong = [f'{key}: {found!r}, but settings.ini says {wanted!r}' for key, (found, wanted) in pairs.items() if found != wanted]
modules = {p.stem for p in (TOP/cfg['lib_path']).glob('*.py')}
wrong += [f'{name} is a module and a public name' for name in sorted(modules & set(soft_decoding.__all__))]
print(*wrong or ['in step'], sep='\n')
sys.exit(bool(wrong))
