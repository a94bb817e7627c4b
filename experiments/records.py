"""Records of runs: JSON files that several processes may add to, one line per run, so that a difference can be read."""
import fcntl, json
from contextlib import contextmanager


def read(path, fresh=None):
    "The record at `path`; `fresh` where there is none."
    return json.loads(path.read_text()) if path.exists() else fresh


def known(path, part="runs"):
    "What the record at `path` holds of a part, a list; nothing where there is no record."
    return (read(path) or {}).get(part, [])


def as_text(record):
    "JSON, with a line for each dictionary in a list of them."
    rows = {k: v for k, v in record.items() if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)}
    text = json.dumps(record | dict.fromkeys(rows, []), indent=1)
    for k, v in rows.items(): text = text.replace(f'\n "{k}": []', f'\n "{k}": [\n  ' + ",\n  ".join(map(json.dumps, v)) + "\n ]", 1)
    return text + "\n"


def write(path, record):
    "Write it whole or not at all."
    part = path.with_suffix(".part")
    part.write_text(as_text(record))
    part.replace(path)


@contextmanager
def opened(path, fresh, same=("config",)):
    "The record at `path`, for one process at a time: what is changed inside is written. Of another `config` there is none."
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = read(path, fresh)
        if wrong := [k for k in same if k in fresh and record.get("runs") and record.get(k) != fresh[k]]:
            raise ValueError(f"{path} was made with another {wrong[0]}; delete it first.")
        yield record
        write(path, record)
