"Print the lower bounds in settings.ini as pip constraints; torch only when asked, with `--torch`."
import re, sys
from configparser import ConfigParser
from pathlib import Path

config = ConfigParser()
config.read(Path(__file__).parents[1]/'settings.ini', encoding='utf-8')
for requirement in config['DEFAULT']['requirements'].split():
    found = re.match(r'([\w.-]+)>=([\w.]+)', requirement)
    if found and (found[1] != 'torch' or '--torch' in sys.argv): print(f'{found[1]}=={found[2]}')
