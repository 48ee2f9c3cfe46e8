"""Exports against stock transformers: the same logits, answers, pixels and ids."""

import dataclasses
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from tests import streams
from tests.text.tokenizers.test_huggingface import CONFIG as QWEN_CONFIG
from tests.text.tokenizers.test_huggingface import qwen
from vimoe_jax import config as config_lib
from vimoe_jax.answer.answerer import Answerer
from vimoe_jax.base import schema
from vimoe_jax.base.errors import UserError, exit_on_user_error
from vimoe_jax.base.files import write_json
from vimoe_jax.config.train import Checkpoint
from vimoe_jax.data import prompts, sources
from vimoe_jax.data.mixture import Mixture
from vimoe_jax.datasets import images
from vimoe_jax.datasets.records import QA, Record
from vimoe_jax.hf import export, names
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel.mesh import make_mesh
from vimoe_jax.run import state as state_lib
from vimoe_jax.run.checkpoint import Checkpoints
from vimoe_jax.run.workdir import Run
from vimoe_jax.text import tokenizers as tokenizer_lib
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece

TEXTS = [
    "Có mấy con mèo trong ảnh? Đáp: hai con mèo",
    "Người đàn ông đội mũ màu gì? Đáp: màu đỏ",
    "Mô tả ảnh: một chiếc thuyền nhỏ trên dòng sông rộng",
    "Nhìn ảnh và trả lời: Quyển sách này của tác giả nào? Đáp: Nguyễn Nhật Ánh",
]
QUESTION = "Có mấy  con mèo\u200b trong ảnh ??"
# No two sizes alike, so that no transposition hides.
BASE = {
    "model": {
        "image_size": 28, "patch_size": 7, "dtype": "float32",
        "vision": {"width": 24, "depth": 3, "num_heads": 3, "mlp_dim": 40},
        "decoder": {
            "width": 36, "depth": 4, "num_heads": 6, "num_kv_heads": 2, "head_dim": 10,
            "mlp_dim": 52, "rope_theta": 5000.0,
        },
    },
    "eval": {"batch_size": 1, "max_new_tokens": 6},
}  # fmt: skip
EXPERTS = {"num_experts": 5, "mlp_dim": 16}
MODELS = {
    "dense": {},
    "every_2": {
        "decoder.moe": {**EXPERTS, "placement": "every_2"},
        "decoder.tie_embeddings": False,
    },
    "last_2": {
        "decoder.moe": {**EXPERTS, "placement": "last_1", "experts_per_token": 3},
        "decoder.num_kv_heads": 6,
    },
    "unnormalised": {"decoder.moe": {**EXPERTS, "placement": "all", "renormalize": False}},
    "granular": {"decoder.moe": {**EXPERTS, "placement": (0, 3), "granularity": 2}},
    "llama": {"decoder.qk_norm": False, "decoder.tie_embeddings": False},
}
OWN = {
    "own": {
        "vision.moe": {**EXPERTS, "mlp_dim": 20, "placement": (0, 2)},
        "connector.moe": {"num_experts": 3, "experts_per_token": 1, "placement": "all"},
        "decoder.moe": EXPERTS,
    },
    "own tower": {"vision.moe": {"num_experts": 2, "placement": "all", "renormalize": False}},
}


def merged(base, fields):
    """Nested dicts, with the model's dotted fields laid over them."""
    values = json.loads(json.dumps(base))
    for name, value in fields.items():
        *path, last = name.split(".")
        place = values["model"]
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    return values


def resolve(fields=(), **top):
    values = schema.to_dict(config_lib.Config())

    def overlay(target, source):
        for key, value in source.items():
            if isinstance(value, dict):
                overlay(target[key], value)
            else:
                target[key] = value

    overlay(values, merged(BASE, dict(fields)))
    overlay(values, top)
    return config_lib.resolve(values)


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(TEXTS, 322)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    pixels = np.random.default_rng(1).integers(0, 256, (9, 14, 3), np.uint8)
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Image.fromarray(pixels).resize((91, 47)).save(path)
    return path


def make(workdir, tokenizer, fields=(), **top):
    """A run that was never trained, and random parameters: norms and biases, too, tell places."""
    c = resolve(fields, **top)
    blueprint = Blueprint.create(c.model, -(-tokenizer.vocab_size // 64) * 64)
    rng = np.random.default_rng(0)
    params = {}
    for name, shape in blueprint.shapes().items():
        norm = name.endswith("scale")
        scale = 0.2 if norm or "bias" in name or ".b_" in name else 0.25
        params[name] = jnp.asarray(rng.normal(norm, scale, shape), jnp.float32)
    head = "decoder.embedding" if c.model.decoder.tie_embeddings else "decoder.head"
    # Bytes in any order are no text: a trained model does not say them, neither shall this one. Nor
    # names it special tokens, the end among them, or what is beyond the vocabulary.
    mute = [*tokenizer.byte_ids, *range(5), *range(tokenizer.vocab_size, blueprint.vocab_size)]
    params[head] = params[head].at[np.array(mute)].set(0)
    return Run(c, workdir, tokenizer, blueprint, make_mesh({}, jax.devices()[:1])), params


def exported(run, params, out, **options):
    options = {"dtype": "float32", "step": 7, **options}
    export.export(run, dict(params), out, **options)
    return out


def record(picture, question=QUESTION):
    qa = QA("0", "vqa" if question else "caption", question, ("?",))
    return Record(str(picture), (picture.read_bytes(),), (qa,))


def our_logits(run, params, pixels, ids):
    asked = streams.prompts([[pixels]], np.array([ids]), [len(ids)], run.config.model.num_patches)

    @jax.jit
    def forward(params, batch):
        model = run.blueprint.build(params)
        return model.logits(model(batch).hidden)

    return np.asarray(forward(params, streams.batch_of(asked)))[0]


def prepared(folder, picture, question=QUESTION):
    """The inputs as a user makes them."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, backend="pil", trust_remote_code=True)
    content = [{"type": "image", "path": str(picture)}]
    content += [{"type": "text", "text": question}] if question else []
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    return processor, inputs


def opened(folder, **options):
    from transformers import AutoModelForImageTextToText

    model, found = AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def assert_same_logits(run, params, folder, picture, **options):
    import torch

    model = opened(folder, **options)
    _, inputs = prepared(folder, picture)
    ids = run.tokenizer.encode(prompts.prompt("vqa", QUESTION))
    patches = 16
    assert inputs["input_ids"][0].tolist() == [run.tokenizer.image_id] * patches + ids
    pixels = images.decode(picture.read_bytes(), 28)
    ours = our_logits(run, params, pixels, ids)
    with torch.no_grad():
        theirs = model(**inputs).logits[0, patches:].numpy()
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)
    return model


@pytest.mark.peer
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_stock_transformers(name, tmp_path, tokenizer, picture):
    pytest.importorskip("torch")
    run, params = make(tmp_path, tokenizer, MODELS[name])
    folder = exported(run, params, tmp_path / "out")
    model = assert_same_logits(run, params, folder, picture)
    assert type(model).__module__.startswith("transformers.")
    assert model.config.text_config.model_type == (
        "llama" if name == "llama" else "qwen3" if name == "dense" else "qwen3_moe"
    )


@pytest.mark.peer
@pytest.mark.parametrize("name", OWN)
def test_experts_in_tower_and_connector_bring_their_code(name, tmp_path, tokenizer, picture):
    pytest.importorskip("torch")
    run, params = make(tmp_path, tokenizer, OWN[name])
    folder = exported(run, params, tmp_path / "out")
    model = assert_same_logits(run, params, folder, picture, trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    again = opened(tmp_path / "again", trust_remote_code=True)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert (a == b).all(), name


@pytest.mark.peer
@pytest.mark.parametrize("fields", [MODELS["every_2"], OWN["own"]])
def test_generate_answers_as_we_do(fields, tmp_path, tokenizer, picture):
    pytest.importorskip("torch")
    run, params = make(tmp_path, tokenizer, fields)
    folder = exported(run, params, tmp_path / "out")
    model = opened(folder, trust_remote_code=True)
    for question in (QUESTION, "", "tác giả nào"):
        source = Mixture(sources.components(run.config.data)[:1], ([record(picture, question)],))
        ours = Answerer(run, params).predict(source, quiet=True)[0].prediction
        processor, inputs = prepared(folder, picture, question)
        new = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(new, skip_special_tokens=True) == ours
        assert ours


@pytest.mark.peer
def test_there_and_back_is_the_same_bits(tmp_path, tokenizer):
    """Through files of ours and files that transformers writes."""
    pytest.importorskip("torch")
    from safetensors.numpy import load_file

    run, params = make(tmp_path, tokenizer, MODELS["every_2"])
    folder = exported(run, params, tmp_path / "out")
    opened(folder).save_pretrained(tmp_path / "again")
    for place in (folder, tmp_path / "again"):
        tensors = {names.canonical(n): v for n, v in load_file(place / "model.safetensors").items()}
        back = {n: np.full(s, np.nan, np.float32) for n, s in run.blueprint.shapes().items()}
        for piece in names.pieces(run.blueprint):
            back[piece.ours][piece.index] = piece.to_ours(tensors.pop(piece.hf))
        assert not tensors
        for name, value in params.items():
            np.testing.assert_array_equal(back[name], value, err_msg=name)


@pytest.mark.peer
def test_a_stock_tokenizer_passes_through(tmp_path, picture):
    pytest.importorskip("torch")
    (tmp_path / "t").mkdir()
    qwen().save(str(tmp_path / "t/tokenizer.json"))
    (tmp_path / "t/tokenizer_config.json").write_text(json.dumps(QWEN_CONFIG))
    tokenizer = tokenizer_lib.load(tmp_path / "t")
    run, params = make(tmp_path, tokenizer)
    folder = exported(run, params, tmp_path / "out")
    assert_same_logits(run, params, folder, picture)
    again = tokenizer_lib.load(folder)
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)


def chat(folder):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, backend="pil")

    def render(*turns, picture=True):
        content = [{"type": "image"}] if picture else []
        content += [{"type": "text", "text": turns[0]}] if turns[0] is not None else []
        messages = [{"role": "user", "content": content}]
        messages += [{"role": "assistant", "content": t} for t in turns[1:]]
        return processor.apply_chat_template(messages, tokenize=False)

    return processor, render


@pytest.mark.peer
def test_the_chat_template_writes_our_prompts(tmp_path, tokenizer):
    pytest.importorskip("torch")
    run, params = make(tmp_path, tokenizer, data={"style": "sports"})
    processor, render = chat(exported(run, params, tmp_path / "out"))
    for question in (QUESTION, "vì sao？", "'\"\\{{ x }} {% y %}", "a ?\u200b?", "màu\n gì\u3000?"):
        assert render(question) == "<image>" + prompts.prompt("vqa", question)
    for nothing in (None, "", " ? "):
        assert render(nothing) == "<image>" + prompts.prompt("caption", "", style="sports")
    ids = processor.tokenizer(render("có gì", "hai  con")).input_ids
    ours = tokenizer.encode(prompts.prompt("vqa", "có gì")) + tokenizer.encode("hai con")
    assert ids == [tokenizer.image_id, *ours, tokenizer.eos_id]
    assert render("<image>có gì", picture=False) == render("có gì")
    for turns, picture in ((("a", "b", "c"), True), (("a",), False), (("<image>a",), True)):
        with pytest.raises(Exception, match="this model takes"):
            render(*turns, picture=picture)


def odd(text):
    return [text, unicodedata.normalize("NFD", text), f" {text}\u200b \n", text.upper()]


@pytest.mark.peer
@pytest.mark.real_data
def test_real_photographs_and_sentences(tmp_path, tokenizer, real_data):
    pytest.importorskip("torch")
    run, params = make(tmp_path, tokenizer, {"image_size": 224, "patch_size": 56})
    processor, render = chat(exported(run, params, tmp_path / "out"))
    lines = (real_data / "text/xquad_vi.txt").read_text(encoding="utf-8").splitlines()
    for line in lines[:200]:
        for question in odd(line[:200]):
            ours = tokenizer.encode(prompts.prompt("vqa", question))
            ids = processor.tokenizer(render(question)).input_ids
            assert ids == [tokenizer.image_id, *ours], question
    for path in sorted((real_data / "images/coco").glob("*.jpg"))[:12]:
        ours = images.decode(path.read_bytes(), 224)
        pixels = processor.image_processor(Image.open(path), return_tensors="np").pixel_values[0]
        levels = (pixels.transpose(1, 2, 0) + 1) * 127.5
        np.testing.assert_allclose(levels, ours, atol=1e-3, err_msg=path.name)


@pytest.mark.peer
@pytest.mark.real_data
def test_the_default_processor_is_within_its_rounding(tmp_path, tokenizer, real_data):
    pytest.importorskip("torchvision")
    from transformers import AutoProcessor

    run, params = make(tmp_path, tokenizer, {"image_size": 224, "patch_size": 56})
    processor = AutoProcessor.from_pretrained(exported(run, params, tmp_path / "out"))
    for path in sorted((real_data / "images/coco").glob("*.jpg"))[:12]:
        ours = images.decode(path.read_bytes(), 224).astype(np.float32)
        pixels = processor.image_processor(Image.open(path), return_tensors="np").pixel_values[0]
        levels = (pixels.transpose(1, 2, 0) + 1) * 127.5
        off = np.abs(levels - ours)
        assert off.max() <= 2.01 and (off > 0.01).mean() < 0.01, path.name


def test_small_shards_hold_the_same(tmp_path, tokenizer):
    from safetensors.numpy import load_file

    run, params = make(tmp_path, tokenizer, MODELS["every_2"])
    whole = load_file(exported(run, params, tmp_path / "one") / "model.safetensors")
    folder = exported(run, params, tmp_path / "many", shard_bytes=20_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 5
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in whole.values())
    found = {}
    for file in files:
        part = load_file(file)
        assert sum(v.nbytes for v in part.values()) <= 20_000 or len(part) == 1
        assert {index["weight_map"][name] for name in part} == {file.name}
        found |= part
    assert found.keys() == whole.keys() == index["weight_map"].keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.peer
def test_shards_and_half_precision_load(tmp_path, tokenizer):
    torch = pytest.importorskip("torch")
    run, params = make(tmp_path, tokenizer, MODELS["every_2"])
    half = {n: p.astype(jnp.bfloat16) for n, p in params.items()}
    folder = exported(run, half, tmp_path / "out", dtype="bfloat16", shard_bytes=20_000)
    model = opened(folder)
    assert model.dtype == torch.bfloat16
    theirs = model.model.language_model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(theirs, half["decoder.embedding"].astype(jnp.float32))


@pytest.mark.parametrize(
    ("fields", "top", "named"),
    [
        ({}, {"data": {"resize": "pad"}}, r"config\.data\.resize: 'pad'"),
        (
            {"decoder.moe": {**EXPERTS, "shared_experts": 1}}, {},
            r"config\.model\.decoder\.moe\.shared_experts",
        ),
        ({"decoder.moe": {**EXPERTS, "router": "hash"}}, {}, r"decoder\.moe\.router: 'hash'"),
        ({"decoder.moe": {**EXPERTS, "bias_rate": 0.1}}, {}, r"decoder\.moe\.bias_rate"),
        (
            {"vision.moe": {**EXPERTS, "router": "expert_choice"}}, {},
            r"vision\.moe\.router: 'expert_choice'",
        ),
        (
            {"connector.moe": {**EXPERTS, "router": "soft", "soft_slots": 2, "placement": "all"}},
            {}, r"connector\.moe\.router: 'soft'",
        ),
        ({"decoder.moe": EXPERTS, "decoder.qk_norm": False}, {}, r"decoder\.qk_norm"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_named(fields, top, named, tmp_path, tokenizer):
    run, params = make(tmp_path, tokenizer, fields, **top)
    with pytest.raises(UserError, match=named) as e:
        exported(run, params, tmp_path / "out")
    assert "\n" not in str(e.value)
    assert not any(tmp_path.iterdir())


def test_an_error_half_way_leaves_nothing(tmp_path, tokenizer):
    run, params = make(tmp_path, tokenizer)
    del params["decoder.norm.scale"]
    with pytest.raises(KeyError):
        exported(run, params, tmp_path / "out")
    assert not any(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    with pytest.raises(UserError, match="exists"):
        exported(run, params, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path, tokenizer):
    run, params = make(tmp_path, tokenizer)
    (tmp_path / ".out.0123456789abcdef.tmp").mkdir()
    (tmp_path / ".out.0123456789abcdef.tmp/model.safetensors").write_bytes(b"half")
    exported(run, params, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_card_tells_what_matters(tmp_path, tokenizer):
    run, params = make(tmp_path, tokenizer, MODELS["every_2"])
    scores = tmp_path / "eval/test/metrics.json"
    scores.parent.mkdir(parents=True)
    label = {"profile": "plain", "comparison": "NFC, lower case", "tokens": "syllables"}
    scores.write_text(json.dumps({"scoring": label, "vqa/accuracy": 0.5321, "vqa/n": 12}))
    card = (exported(run, params, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    for part in (
        "| vqa/accuracy | 0.5321 |", "NFC, lower case", "router logits", "`viscenes`", "Licence",
        "1.25 × an even share", "Có mấy con mèo", "| decoder | 1, 3 of 4 | 5 | 2 | 16 |", "step 7",
    ):  # fmt: skip
        assert part in card, part
    assert card.startswith("---\nlanguage: vi\n")
    assert "trust_remote_code" not in card
    scores.write_text("{}")
    with pytest.raises(UserError, match=r"metrics\.json"):
        exported(run, params, tmp_path / "other")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tokenizer):
    """A run with two checkpoints, the first of which is the best."""
    folder = tmp_path_factory.mktemp("run")
    run, params = make(folder, tokenizer, MODELS["every_2"], checkpoint={"keep_last": 2})
    write_json(folder / "config.json", schema.to_dict(run.config))
    tokenizer.save(folder)
    state = state_lib.create(params, optax.sgd(0.1), set(params))
    checkpoints = Checkpoints(folder / "checkpoints", Checkpoint())
    for step, loss in ((3, 1.0), (5, 2.0)):
        new = {n: p + step for n, p in params.items()}
        checkpoints.save(
            dataclasses.replace(state, step=jnp.asarray(step), params=new),
            {"batches": step},
            val_loss=loss,
        )
        checkpoints.wait()
    checkpoints.close()
    return folder, params


def command(*options, **env):
    return subprocess.run(
        [sys.executable, "-m", "vimoe_jax.hf.export", *options],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **env}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_command_writes_the_best_or_the_named_step(workdir, tmp_path):
    from safetensors.numpy import load_file

    folder, params = workdir
    norm = np.asarray(params["decoder.norm.scale"])
    name = "language_model.model.norm.weight"
    for step, more in ((3, []), (5, ["--step=5"])):
        out = tmp_path / str(step)
        done = command(f"--workdir={folder}", f"--out={out}", "--dtype=float32", *more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"step {step} -> {out}"]
        found = load_file(out / "model.safetensors")[name]
        np.testing.assert_array_equal(found, norm + np.float32(step))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--out=x"], "--workdir: needed"),
        (["--workdir=x"], "--out: needed"),
        (["--workdir=x", "--out=y"], "no such file"),
        (["--workdir=x", "--out=."], "--out: . exists"),
        (["--workdir=x", "--out=y", "--dtype=int8"], "--dtype: must be one of float32, bfloat16"),
        (["--workdir=x", "--out=y", "--step=best"], "--step: must be a whole number"),
        (["--workdir=x", "--out=y", "--push=a/b/c"], "--push:"),
    ],
)
def test_bad_options_are_one_line(options, named, capsys):
    with pytest.raises(SystemExit) as e, exit_on_user_error():
        export.main(options)
    assert e.value.code == 2
    error = capsys.readouterr().err
    assert named in error and len(error.splitlines()) == 1


def test_pushing_needs_its_client(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="huggingface_hub"):
        export.main(["--workdir=x", f"--out={tmp_path / 'y'}", "--push=me/model"])


def test_pushing_uploads_the_whole_folder(workdir, tmp_path, monkeypatch, capsys):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    calls = []

    class Api:
        def create_repo(self, repo, exist_ok):
            calls.append((repo, exist_ok))
            return f"https://hub/{repo}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))
            if repo_id == "me/full":
                raise OSError("no\nroom")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    arguments = [f"--workdir={workdir[0]}", f"--out={tmp_path / 'a'}", "--push=me/model"]
    assert export.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "https://hub/me/model"
    assert calls[0] == ("me/model", True)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {*calls[1][1]}
    with pytest.raises(UserError, match="is whole, but was not uploaded: no room"):
        export.main([arguments[0], f"--out={tmp_path / 'b'}", "--push=me/full"])
    assert (tmp_path / "b/config.json").exists()
