"Take the upper bounds of four libraries out of the settings.ini beside this folder: for a copy, to see what today's releases break."
import re
from pathlib import Path

FREE = 'transformers', 'peft', 'accelerate', 'datasets'  # the caps of torch and of nbdev stay
path = Path(__file__).resolve().parents[1]/'settings.ini'
assert not (path.parent/'.git').exists(), f'{path.parent} is a checkout: run this in a copy'
text = path.read_text(encoding='utf-8')
path.write_text(re.sub(rf'(?<![\w-])({"|".join(FREE)})(>=[\w.]+)?,?<[\w.]+', r'\1\2', text), encoding='utf-8')
