"""What the chat model answers, as it is and after LoRA: every published method by name, by `compare`.

    python experiments/text/trained.py teacher_lora guided_lora --minutes 15 --seeds 1 --adapters FOLDER --record FOLDER/log.json
    python experiments/text/answers.py                                  the model as it is
    python experiments/text/answers.py guided=FOLDER/guided_lora_1      with an adapter, under the name "guided"
    python experiments/text/answers.py --decoders greedy mixture -- teacher=FOLDER/teacher_lora_1
    python experiments/text/answers.py --rules                          what rules without a model answer

Questions are those of `untrained.py`, 100 of GSM8K and 100 of SVAMP; replies have 96 tokens, the first 16 of them soft. Every reply is kept beside the
record, in `answers_NAME.jsonl` of --keep, from which the same command goes on; `results/text_answers.json` has who was right.
"""
import argparse, math, os, platform, re, sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("SIZES", "200 16 0 0")  # Questions; rows at a time; no whole replies
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from soft_decoding import Think, compare
from soft_decoding.evaluation import problem_ids
from soft_decoding.tasks import parse_number
from recipes import CHANGES, NAMES, load
from untrained import BATCH, FOLDER, NAME, QUESTIONS, SPANLESS, problems
sys.path.insert(0, str(Path(__file__).parents[1]))
from records import opened  # noqa: E402

RECORD = Path(__file__).parents[2] / "results/text_answers.json"
STEPS, NEW = 16, 96
SPAN = Think(max_tokens=STEPS)
CONTROLS = dict(greedy=dict(soft=False), sampled=dict(soft=False, do_sample=True, temperature=1., top_k=10), mixture=dict(think=SPAN, temperature=1., top_k=10))
METHODS = {name: dict(recipe=name, **({} if name in SPANLESS else dict(think=SPAN)), **CHANGES.get(name, {})) for name in NAMES}
DECODERS = CONTROLS | METHODS


RULES = {"the difference of the last two numbers": lambda ns: abs(ns[-1] - ns[-2]), "the largest number minus the smallest": lambda ns: max(ns) - min(ns),
         "the sum of all numbers": sum, "the product of all numbers": math.prod, "the last number": lambda ns: ns[-1]}


def asked(): return [p for _, _, p in problems()]


def header():
    "What is the same for all runs."
    return dict(what="Whole replies of the chat model, right or not", config=dict(model=NAME, questions=QUESTIONS, batch=BATCH, steps=STEPS, new_tokens=NEW, decoders=[*DECODERS], asked=[[name, i] for name, i, _ in problems()]),
                versions={name: version(name) for name in ("torch", "transformers", "peft")} | dict(python=platform.python_version()),
                hardware=f"{platform.machine()}, 1 thread", runs=[])


def run(name, adapter, decoders, keep):
    "Some decoders on one model; what the record has of it is replaced."
    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER, padding_side="left"), load(adapter)
    for decoder in decoders:
        found = compare(model, tokenizer, asked(), {decoder: DECODERS[decoder]}, max_new_tokens=NEW, batch_size=BATCH, chat=True, quiet=True,
                        out=keep / f"answers_{name}_{decoder}.jsonl".replace(" ", "_"))
        correct = {r["id"]: int(r["correct"]) for r in found.of(decoder)}
        row = dict(model=name, decoder=decoder, **{k: round(found.rows()[0][k], 2) for k in ("tokens", "passes", "cut", "seconds")},
                   right=[correct[i] for i in problem_ids(asked())])
        with opened(RECORD, header()) as record:
            record["runs"] = [r for r in record["runs"] if (r["model"], r["decoder"]) != (name, decoder)] + [row]
        print(name, decoder, *(sum(right for right, (data, _, _) in zip(row["right"], problems()) if data == part) for part in ("gsm8k", "svamp")), flush=True)


def by_rules():
    "Which questions a rule solves that reads nothing but the numbers in them; a question with one number has that number twice."
    found = [[float(x.replace(",", "")) for x in re.findall(r"\d[\d,]*(?:\.\d+)?", p.prompt)] for p in asked()]
    solved = lambda rule, ns, p: int(bool(ns) and math.isclose(rule(ns * (2 if len(ns) == 1 else 1)), parse_number(p.answer)))
    with opened(RECORD, header()) as record:
        record["rules"] = {name: [solved(rule, ns, p) for ns, p in zip(found, asked())] for name, rule in RULES.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["as it is"], metavar="NAME=ADAPTER")
    parser.add_argument("--decoders", nargs="+", default=list(DECODERS), choices=list(DECODERS), metavar="DECODER")
    parser.add_argument("--keep", type=Path, default=Path.home() / ".cache/soft_decoding/answers", help="folder of the replies")
    parser.add_argument("--rules", action="store_true", help="rules instead of a model")
    args = parser.parse_args()
    if args.rules: return by_rules()
    torch.set_num_threads(1); logging.set_verbosity_error(); logging.disable_progress_bar()
    args.keep.mkdir(parents=True, exist_ok=True)
    for given in args.models:
        name, _, adapter = given.partition("=")
        run(name, adapter or None, args.decoders, args.keep)


if __name__ == "__main__": main()
