"""The loading command: what it reads, what it leaves, what it refuses."""

import dataclasses
import json
import runpy

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.hf import peers
from tests.hf.test_names import EXPERTS, model
from vimoe_jax import config as config_lib
from vimoe_jax.base.errors import UserError
from vimoe_jax.hf import names, settings, weights
from vimoe_jax.hf.load import load, main
from vimoe_jax.hf.readers import Safetensors
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.run.checkpoint import load_params
from vimoe_jax.run.workdir import reopen

VOCAB = 55
DENSE = model()
TOWER_CONFIG = dict(
    model_type="siglip_vision_model", hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
    intermediate_size=12, image_size=12, patch_size=4,
)  # fmt: skip
DECODER_CONFIG = dict(
    model_type="qwen3", hidden_size=12, num_hidden_layers=4, num_attention_heads=6,
    num_key_value_heads=2, head_dim=4, intermediate_size=14, vocab_size=VOCAB,
    tie_word_embeddings=True, rope_theta=5e5, rope_scaling=None, sliding_window=None,
)  # fmt: skip
LLAVA_CONFIG = dict(
    model_type="llava", vision_config=TOWER_CONFIG, text_config=DECODER_CONFIG,
    image_token_index=4, vision_feature_layer=-1, vision_feature_select_strategy="full",
    tie_word_embeddings=True,
)  # fmt: skip


def tensors(c=DENSE, fused=False):
    """A model's parameters, and its file's tensors."""
    blueprint = Blueprint.create(c, VOCAB)
    draw = np.random.default_rng(3)
    params = {n: draw.normal(size=s).astype(np.float32) for n, s in blueprint.shapes().items()}
    pieces = names.pieces(blueprint, fused_experts=fused)
    return params, {p.hf: p.to_hf(params[p.ours]) for p in pieces}


def write(folder, config, files, dtype=np.float32):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    peers.write_safetensors(folder, files, dtype)
    if config["model_type"] not in settings.TOWERS:
        peers.tokenizer(folder)
    return folder


@pytest.fixture
def llava(tmp_path):
    """Folder of a LLaVA, and its parameters."""
    params, files = tensors()
    return write(tmp_path / "llava", LLAVA_CONFIG, files), params, files


def two(tmp_path, dtype=np.float32, **tower):
    """Folders of a full SigLIP and a decoder, in the names they have alone."""
    params, files = tensors()
    vision = {
        n.removeprefix("vision_tower."): t for n, t in files.items() if n.startswith("vision")
    }
    vision |= {
        "logit_scale": np.zeros(1),
        "text_model.final_layer_norm.bias": np.zeros(3),
        "vision_model.head.probe": np.zeros((1, 1, 8)),
    }
    siglip = dict(model_type="siglip", vision_config={**TOWER_CONFIG, **tower}, text_config={})
    language = "language_model."
    text = {n.removeprefix(language): t for n, t in files.items() if n.startswith(language)}
    text["lm_head.weight"] = text["model.embed_tokens.weight"]  # a tied head's copy
    a = write(tmp_path / "siglip", siglip, vision, dtype)
    b = write(tmp_path / "qwen", DECODER_CONFIG, text, dtype)
    return a, b, params


def loaded(workdir):
    run = reopen(workdir, [])
    return run, {n: np.asarray(p) for n, p in load_params(run).items()}


def same(found, params, parts=("vision", "connector", "decoder")):
    for name, value in params.items():
        if name.split(".")[0] in parts:
            rows = slice(0, VOCAB) if name in ("decoder.embedding", "decoder.head") else ...
            np.testing.assert_array_equal(found[name][rows], value, err_msg=name)


def refusal(*paths, workdir, **more):
    before = sorted(workdir.parent.iterdir())
    with pytest.raises(UserError) as e:
        load(paths, workdir, **more)
    assert sorted(workdir.parent.iterdir()) == before  # nothing half-written
    assert "\n" not in str(e.value)
    return str(e.value)


def test_llava(llava, tmp_path, capsys):
    folder, params, _ = llava
    workdir = tmp_path / "run"
    assert main([f"--source={folder}", f"--workdir={workdir}", "--config.train.steps=7"]) == 0
    assert f"--config={workdir / 'config.py'}" in capsys.readouterr().out
    run, found = loaded(workdir)
    same(found, params)
    assert run.config.train.steps == 7
    assert run.config.model.decoder.rope_theta == 5e5
    assert run.config.model.decoder.vocab_size == 64
    np.testing.assert_allclose(
        found["decoder.embedding"][VOCAB:].mean(0), params["decoder.embedding"].mean(0), atol=1e-6
    )
    made = runpy.run_path(str(workdir / "config.py"))["get_config"]()
    assert config_lib.resolve(made.to_dict()) == run.config
    assert not list(tmp_path.glob(".run*"))


def test_training_may_use_the_written_config_file(llava, tmp_path):
    folder, _, _ = llava
    load([folder], tmp_path / "run")
    c = config_lib.load(tmp_path / "run" / "config.py", [("optim.learning_rate", "3e-4")])
    assert c.model == config_lib.from_json(tmp_path / "run" / "config.json").model


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_tower_and_decoder_of_their_own(tmp_path, dtype):
    a, b, params = two(tmp_path, dtype)
    load([a, b], tmp_path / "run")
    _, found = loaded(tmp_path / "run")
    rounded = {n: p.astype(dtype).astype(np.float32) for n, p in params.items()}
    same(found, rounded, ("vision", "decoder"))
    fresh = found["connector.w_in"]
    assert 0 < fresh.std() < 1 and not found["connector.b_in"].any()


def test_stored_in_bfloat16(llava, tmp_path):
    folder, params, _ = llava
    assert main([f"--source={folder}", f"--workdir={tmp_path / 'run'}", "--dtype=bfloat16"]) == 0
    _, found = loaded(tmp_path / "run")
    same(found, {n: p.astype(ml_dtypes.bfloat16).astype(np.float32) for n, p in params.items()})


def test_another_image_size(tmp_path):
    a, b, params = two(tmp_path)
    load([a, b], tmp_path / "run", image_size=20)
    run, found = loaded(tmp_path / "run")
    assert run.config.model.image_size == 20 and found["vision.positions"].shape == (25, 8)
    np.testing.assert_array_equal(
        found["vision.positions"], weights.resized(params["vision.positions"], 25)
    )


@pytest.mark.peer
@pytest.mark.parametrize("new", [2, 5, 11])
def test_positions_are_resized_as_transformers_does(new):
    torch = pytest.importorskip("torch")
    old = np.random.default_rng(0).normal(size=(49, 3)).astype(np.float32)
    grid = torch.tensor(old).reshape(1, 7, 7, 3).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        grid, size=(new, new), mode="bicubic", align_corners=False
    )
    found = weights.resized(old, new * new).reshape(new, new, 3)
    np.testing.assert_allclose(found, expected[0].permute(1, 2, 0).numpy(), atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_experts_one_by_one_or_fused_in_shards(tmp_path, fused):
    c = model(moe=EXPERTS)
    params, files = tensors(c, fused)
    text = dict(
        DECODER_CONFIG, model_type="qwen3_moe", num_experts=3, num_experts_per_tok=2,
        moe_intermediate_size=8, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[],
    )  # fmt: skip
    folder = write(tmp_path / "moe", dict(LLAVA_CONFIG, text_config=text), {})
    (folder / "model.safetensors").unlink()
    index = {}
    for i in range(3):
        shard = dict(list(files.items())[i::3])
        file = f"model-{i + 1:05}-of-00003.safetensors"
        peers.write_safetensors(folder, shard, name=file)
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    load([folder], tmp_path / "run")
    run, found = loaded(tmp_path / "run")
    same(found, params)
    assert run.config.model.decoder.moe == EXPERTS
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003" in refusal(folder, workdir=tmp_path / "other")


def big_vision(path, params, *, stacked):
    """The tower as big_vision's SigLIP files have it."""
    c = dataclasses.replace(DENSE)
    arrays = {"params/t": np.zeros(1), "params/txt/head/bias": np.zeros(2)}
    arrays["params/img/MAPHead_0/probe"] = np.zeros((1, 1, 8))
    for p in names.pieces(Blueprint.create(c, VOCAB), table=names.BIG_VISION):
        arrays[f"params/img/{p.hf}"] = p.to_hf(params[p.ours])
    arrays["params/img/pos_embedding"] = arrays["params/img/pos_embedding"][None]
    if stacked:
        first = "params/img/Transformer/encoderblock_0/"
        for name in [n for n in arrays if n.startswith(first)]:
            layers = [arrays.pop(name.replace("block_0", f"block_{i}")) for i in range(3)]
            arrays[name.replace("block_0", "block")] = np.stack(layers)
    np.savez(path, **arrays)


@pytest.mark.parametrize("stacked", [False, True])
def test_big_vision_tower(tmp_path, stacked):
    _, b, params = two(tmp_path)
    big_vision(tmp_path / "tower.npz", params, stacked=stacked)
    load([tmp_path / "tower.npz", b], tmp_path / "run")
    run, found = loaded(tmp_path / "run")
    same(found, params, ("vision", "decoder"))
    assert run.config.model.vision == DENSE.vision and run.config.model.image_size == 12


def test_npz_with_pickles_is_refused(tmp_path):
    _, b, _ = two(tmp_path)
    np.savez(tmp_path / "bad.npz", a=np.array([{}], dtype=object))
    assert "pickled" in refusal(tmp_path / "bad.npz", b, workdir=tmp_path / "run")


def test_parts_of_a_workdir(llava, tmp_path):
    folder, params, _ = llava
    load([folder], tmp_path / "first")
    (tmp_path / "other").mkdir()
    _, b, _ = two(tmp_path / "other")
    load([tmp_path / "first", b], tmp_path / "second")
    _, found = loaded(tmp_path / "second")
    same(found, params, ("vision", "decoder"))
    assert not np.array_equal(found["connector.w_in"], params["connector.w_in"])
    load([tmp_path / "first"], tmp_path / "third", image_size=16)
    _, found = loaded(tmp_path / "third")
    same(found, params, ("connector", "decoder"))


def test_all_names_that_do_not_fit_are_told(llava, tmp_path):
    folder, _, files = llava
    up = "language_model.model.layers.{}.mlp.up_proj.weight"
    for i in (0, 1, 3):
        del files[up.format(i)]
    files["language_model.model.norm.weight"] = np.ones(5)
    files["language_model.extra.weight"] = np.ones(2)
    peers.write_safetensors(folder, files)
    message = refusal(folder, workdir=tmp_path / "run")
    assert "missing: language_model.model.layers.{0-1,3}.mlp.up_proj.weight" in message
    assert "of shape (5,), not (12,): language_model.model.norm.weight" in message
    assert "unexpected: language_model.extra.weight" in message


def test_nan_inside(llava, tmp_path):
    folder, _, files = llava
    for name in ("language_model.model.norm.weight", "multi_modal_projector.linear_1.bias"):
        files[name] = files[name].copy()
        files[name][1] = np.nan
    peers.write_safetensors(folder, files)
    message = refusal(folder, workdir=tmp_path / "run")
    assert "NaN" in message and "norm.weight" in message and "linear_1.bias" in message


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("text_config", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("text_config", "rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4}),
        ("text_config", "use_sliding_window", True),
        ("text_config", "attention_bias", True),
        ("text_config", "hidden_act", "gelu"),
        ("text_config", "layer_types", ["full_attention", "sliding_attention"]),
        ("text_config", "model_type", "gemma"),
        ("text_config", "hidden_size", "12"),
        ("text_config", "quantization_config", {"bits": 4}),
        ("vision_config", "hidden_act", "quick_gelu"),
        ("vision_config", "model_type", "clip_vision_model"),
        ("vision_config", "num_patches", 256),
        ("vision_config", "image_size", [12, 16]),
        (None, "vision_feature_layer", -2),
        (None, "vision_feature_select_strategy", "default"),
        (None, "multimodal_projector_bias", False),
        (None, "projector_hidden_act", "silu"),
        (None, "image_token_index", 99),
        (None, "model_type", "llava_next"),
    ],
)
def test_what_we_cannot_be(llava, tmp_path, where, field, value):
    folder, _, _ = llava
    config = json.loads((folder / "config.json").read_text())
    (config if where is None else config[where])[field] = value
    (folder / "config.json").write_text(json.dumps(config))
    message = refusal(folder, workdir=tmp_path / "run")
    named = "model_type" if field == "num_patches" else field.replace("rope_parameters", "rope")
    assert named in message and "config.json" in message


def test_several_fields_at_once(llava, tmp_path):
    folder, _, _ = llava
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"attention_bias": True, "hidden_act": "relu"}
    config["vision_feature_layer"] = -2
    (folder / "config.json").write_text(json.dumps(config))
    message = refusal(folder, workdir=tmp_path / "run")
    for field in ("text_config.attention_bias", "text_config.hidden_act", "vision_feature_layer"):
        assert field in message


def test_pickles_and_damaged_files(llava, tmp_path):
    folder, _, _ = llava
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    assert "whole" in refusal(folder, workdir=tmp_path / "run")
    file.write_bytes(b"\xff" * 40)
    assert "whole" in refusal(folder, workdir=tmp_path / "run")
    file.unlink()
    assert "no .safetensors" in refusal(folder, workdir=tmp_path / "run")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert "pytorch_model.bin" in refusal(folder, workdir=tmp_path / "run")


def test_sources_that_do_not_go_together(tmp_path):
    a, b, _ = two(tmp_path)
    assert "has a vision part" in refusal(b, workdir=tmp_path / "run")
    assert "is in both" in refusal(a, b, a, workdir=tmp_path / "run")
    assert "neither" in refusal(tmp_path / "nowhere", b, workdir=tmp_path / "run")
    (b / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(a, b, workdir=tmp_path / "run")


def test_a_workdir_that_is_there(llava, tmp_path):
    folder, _, _ = llava
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    assert "not empty" in refusal(folder, workdir=tmp_path / "run")
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--dtype=int8", "--dtype"),
        ("--image_size=x", "--image_size"),
        ("--image_size=13", "image_size"),
        ("--config.model.decoder.depth=5", "layers.4."),
        ("--config.train.step=5", "train.step"),
    ],
)
def test_arguments(llava, tmp_path, argument, named):
    folder, _, _ = llava
    with pytest.raises(UserError, match=named):
        main([f"--source={folder}", f"--workdir={tmp_path / 'run'}", argument])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "resize", "complaint"),
    [
        (dict(size={"height": 20, "width": 20}), "squash", None),
        (dict(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}), "crop", None),
        (dict(size={"height": 20, "width": 24}), None, "size"),
        (dict(size={"shortest_edge": 20}), None, "size"),
        (dict(size={"height": 20, "width": 20}, image_mean=[0.48, 0.45, 0.40]), None, "image_mean"),
        (dict(size={"height": 20, "width": 20}, do_normalize=False), None, "do_normalize"),
    ],
)
def test_processor(tmp_path, values, resize, complaint):
    a, b, _ = two(tmp_path)
    (a / "preprocessor_config.json").write_text(json.dumps(values))
    if complaint:
        assert complaint in refusal(a, b, workdir=tmp_path / "run")
        return
    load([a, b], tmp_path / "run")
    c = config_lib.from_json(tmp_path / "run" / "config.json")
    assert (c.data.resize, c.model.image_size) == (resize, 20)


def test_the_shortest_word_for_a_placement():
    def found(**values):
        base = dict(DECODER_CONFIG, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=1)
        fields, complaints = settings.decoder({**base, **values}, "")
        assert not complaints
        return fields.get("moe", {}).get("placement")

    assert found(decoder_sparse_step=1) == "all"
    assert found(decoder_sparse_step=2) == "every_2"
    assert found(mlp_only_layers=[0, 1]) == (2, 3)
    assert found(mlp_only_layers=[0, 2]) == "every_2"
    assert found(mlp_only_layers=[0]) == (1, 2, 3)
    assert found(mlp_only_layers=[0, 1, 2, 3]) is None


def test_what_is_held_while_reading_is_one_tensor(llava):
    folder, _, files = llava
    reader = Safetensors(folder)
    assert reader.shapes == {n: t.shape for n, t in files.items()}
    name = "language_model.model.layers.2.mlp.up_proj.weight"
    np.testing.assert_array_equal(reader.read(name), files[name])


def test_parameters_lie_as_the_mesh_wants(llava, tmp_path):
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    folder, params, _ = llava
    mesh = [("mesh.data", "1"), ("mesh.fsdp", "2"), ("mesh.tensor", "2")]
    load([folder], tmp_path / "run", [*mesh, ("mesh.expert", str(len(jax.devices()) // 4))])
    _, found = loaded(tmp_path / "run")
    same(found, params)


def test_training_begins_from_what_was_loaded(llava, tmp_path, viscenes_dir):
    """`main` takes checkpoint 0, which has parameters only, and goes on from its own afterwards."""
    from vimoe_jax import main as job

    folder, params, _ = llava
    workdir = tmp_path / "run"
    assert main([f"--source={folder}", f"--workdir={workdir}"]) == 0
    fields = {
        "data.dir": viscenes_dir, "data.variant": "tiny", "data.text_length": 64,
        "train.steps": 2, "train.batch_size": 8, "train.log_every": 1, "checkpoint.every": 1,
        "optim.warmup_steps": 0, "optim.vision_rate": 0, "eval.every": 0, "eval.at_end": False,
    }  # fmt: skip
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    assert job.main([f"--config={workdir}/config.py", f"--workdir={workdir}", *options]) == 0
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert steps[-2:] == [1, 2]
    trained = load_params(reopen(workdir, []), 2)
    for name, value in trained.items():
        same = np.array_equal(value, params[name])
        assert same == name.startswith("vision."), name  # frozen; all else has moved
