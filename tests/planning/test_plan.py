"""`plan` as its users meet it: the text, the JSON, and what it refuses."""

import dataclasses
import importlib.util
import json
import re
import textwrap
from pathlib import Path

import pytest
import rich.console

from polyepo_jax import plan
from polyepo_jax.config import Config, JudgeConfig, MeshJudge, SamplingConfig
from polyepo_jax.config.files import load
from polyepo_jax.config.meshes import why_not
from polyepo_jax.errors import InputError
from polyepo_jax.planning import advice, programs
from polyepo_jax.planning.advice import fewest_devices, largest_wave, nearest_change, peak_bytes
from polyepo_jax.planning.estimate import shape_of
from polyepo_jax.planning.hardware import GIB, parse_topology
from polyepo_jax.planning.plan import make_plan
from polyepo_jax.planning.render import amount, duration, render, size
from polyepo_jax.planning.rollout_estimate import rollout_memory, wave_rows
from polyepo_jax.sharding import MeshConfig

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

ROOT = Path(__file__).resolve().parents[2]
LARGE = ROOT / "configs/math/qwen3_4b_polaris.py"

TINY = """
    import dataclasses
    from polyepo_jax.sharding import MeshConfig
    from tests.tiny import rl_config

    def get_config():
        config = rl_config(mesh=MeshConfig(-1, 1, 1))
        return dataclasses.replace(config, model=dataclasses.replace(config.model, num_key_value_heads=2))
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(textwrap.dedent(TINY))
    return str(path)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command; gives what a person sees, and the JSON."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        path = tmp_path / "plan.json"
        plan.main([*map(str, arguments), "--json", str(path)])
        return capsys.readouterr().out, json.loads(path.read_text())

    return run


def words(text):
    """Without line breaks and frames of tables."""
    return re.sub(r"\s+", " ", text)


def test_the_initial_policy_is_counted_where_it_is_kept(run, tiny):
    arguments = "--config", tiny, "--topology", "v5e:2x2", "--estimate-only"
    (_, without), (_, measured) = run(*arguments), run(*arguments, "--logging.kl-interval-steps", "10")
    weights = without["update"]["estimate_bytes"]["weights"]
    assert weights > 0
    for name in ("update", "rollout"):
        assert measured[name]["peak_bytes"] - without[name]["peak_bytes"] == weights
        # To the compiler, whose programs do not have it, it is added.
        assert measured[name]["resident_bytes"] - without[name]["resident_bytes"] == weights
    _, penalised = run(*arguments, "--algorithm.loss.beta", "0.1", "--logging.kl-interval-steps", "10")
    assert penalised["update"]["resident_bytes"] == 0
    assert penalised["update"]["estimate_bytes"]["weights"] == 2 * weights


def test_rollouts_in_flight_are_counted(run, tiny):
    arguments = "--config", tiny, "--topology", "v5e:2x2", "--estimate-only"
    (said_before, lockstep), (said, ahead) = run(*arguments), run(*arguments, "--algorithm.staleness", "3")
    # Of 3 steps a quarter of 16 generations of 8 tokens: 4 B, whether it counts 1 B, its logprob 4 B; and 1 B, if cut.
    expected = 3 * 4 * (8 * 9 + 1)
    for name in ("update", "rollout"):
        for bytes_of in ("peak_bytes", "resident_bytes"):
            assert ahead[name][bytes_of] - lockstep[name][bytes_of] == expected
    seconds = 3 * ahead["step_seconds"]
    assert ahead["staleness"] == {"steps": 3, "in_flight_bytes": expected, "hidden_judge_seconds": seconds}
    assert lockstep["staleness"] == {"steps": 0, "in_flight_bytes": 0, "hidden_judge_seconds": 0}
    assert "sampled 3 steps ahead with the parameters at hand: 0.0 MiB of a device are in flight" in words(said)
    assert f"a step waits for no judge that takes less than {duration(seconds)}" in words(said)
    assert "in flight" not in said_before
    # Prompts that four devices do not divide lie on all of them.
    _, ahead = run(*arguments, "--algorithm.staleness", "1", "--prompts-per-step", "3")
    assert ahead["staleness"]["in_flight_bytes"] == 12 * (8 * 9 + 1)


@pytest.mark.parametrize(("size", "v5e_rows"), [("1p7b", 128), ("4b", 64)])
def test_adapters_fit_where_docs_say_so(run, size, v5e_rows):
    """docs/one_device.md; what is said there of a v5e-8 compiles."""
    config, one_gpu = ROOT / f"configs/math/qwen3_{size}_lora.py", ("--topology", "gpu:h100x1", "--estimate-only")
    _, adapters = run("--config", config, *one_gpu)
    _, every = run("--config", ROOT / f"configs/math/qwen3_{size}_polaris.py", *one_gpu, "--mesh.tensor", "1")
    trained, all_trained = (
        sum(plan["update"]["estimate_bytes"][name] for name in ("optimizer", "gradients")) for plan in (adapters, every)
    )
    assert adapters["fits"] is True
    assert 0 < trained < 0.03 * all_trained
    on_v5e = "--topology", "v5e:2x4", "--estimate-only", "--mesh.tensor", "4", "--sampling.max-rows", v5e_rows
    assert run("--config", config, *on_v5e)[1]["fits"] is True
    flags = f"--mesh.tensor 4 --sampling.max-rows {v5e_rows}"
    assert f"`configs/math/qwen3_{size}_lora.py` | the same, `{flags}`" in (ROOT / "docs/one_device.md").read_text()


def test_a_judge_on_the_mesh_is_not_hidden(tiny, capsys):
    config = load(Path(tiny), Config)
    config = dataclasses.replace(
        config,
        algorithm=dataclasses.replace(config.algorithm, staleness=1),
        judge=JudgeConfig(MeshJudge("models/any")),
    )
    made = make_plan(config, parse_topology("v5e:2x2"), compiles=False)
    assert made.hidden_seconds == 0
    render(made, rich.console.Console())
    assert "a judge on the mesh is not hidden by it" in words(capsys.readouterr().out)


PHASE_KEYS = {"peak_bytes", "flops", "bound_by", "seconds"}


@pytest.mark.parametrize("topology", ["cpu", "gpu:h200x4", "v5e:2x2"])
def test_json_has_what_scripts_read(run, tiny, topology):
    text, found = run("--config", tiny, "--topology", topology, "--estimate-only")
    devices = 1 if topology == "cpu" else 4
    assert (found["topology"], found["num_chips"], found["num_devices"]) == (topology, devices, devices)
    assert found["mesh"] == {"data": devices, "fsdp": 1, "tensor": 1}
    assert found["fits"] is True
    assert found["missing_bytes"] == 0
    assert found["hbm_limit_bytes"] == parse_topology(topology).chip.hbm_bytes
    assert found["collectives"] == []
    assert found["advice"] is found["more_devices"] is None
    for name in ("rollout", "update"):
        phase = found[name]
        assert phase.keys() >= PHASE_KEYS
        assert 0 < phase["peak_bytes"] < found["hbm_limit_bytes"]
        assert phase["peak_bytes"] == phase["estimate_bytes"]["total"]
        assert phase["flops"] == pytest.approx(phase["flops_per_device"] * devices)
        assert phase["compiled"] is False
        if topology == "cpu":
            assert phase["seconds"] is phase["bound_by"] is None
        else:
            assert phase["seconds"] > 0
            assert phase["bound_by"] in ("compute", "memory", "interconnect")
    if topology == "cpu":
        assert found["step_seconds"] is found["run"] is None
        assert "at least" not in text
    else:
        assert found["step_seconds"] == pytest.approx(found["rollout"]["seconds"] + found["update"]["seconds"])
        assert found["run"]["chip_hours"] == pytest.approx(4 * 6 * found["step_seconds"] / 3600)
        assert "at least" in text
    assert "fits by the estimate" in words(text)


def test_tables_fit_into_80_columns(run, tiny):
    text, _ = run("--config", LARGE, "--topology", "v5e:2x2")
    tables = [line for line in text.splitlines() if set(line) & set("│┃━─")]
    assert len(tables) > 15
    assert max(map(len, tables)) <= 80


def test_a_4b_model_does_not_fit_into_four_small_chips(run, monkeypatch):
    def refuse(*_):
        raise AssertionError("nothing is to be compiled")

    monkeypatch.setattr("polyepo_jax.planning.plan.compile_update", refuse)
    monkeypatch.setattr("polyepo_jax.planning.plan.compile_rollout", refuse)
    text, found = run("--config", LARGE, "--topology", "v5e:2x2")
    assert found["fits"] is False
    peak = max(found["update"]["peak_bytes"], found["rollout"]["peak_bytes"])
    assert found["missing_bytes"] == peak - found["hbm_limit_bytes"] > GIB
    for name in ("update", "rollout"):
        lacking = found[name]["peak_bytes"] - found["hbm_limit_bytes"]
        assert f"does not fit: the {name} lacks {lacking / GIB:.2f} GiB of a device's memory" in text
    # And says what would, in words that can be typed.
    assert found["advice"] is None
    more = found["more_devices"]
    assert more["num_devices"] > 4
    command = next(line.strip() for line in text.splitlines() if line.startswith("  --topology"))
    assert command.startswith(f"--topology {more['topology']}")
    _, then = run("--config", LARGE, *command.split(), "--estimate-only")
    assert then["fits"] is True
    assert then["num_devices"] == more["num_devices"]
    assert max(then["update"]["peak_bytes"], then["rollout"]["peak_bytes"]) == more["estimated_peak_bytes"]


def test_advice_on_the_same_devices_fits_when_it_is_applied(run):
    arguments = "--config", LARGE, "--topology", "v5e:2x4", "--estimate-only"
    text, found = run(*arguments)
    assert found["fits"] is False
    overrides = found["advice"]["overrides"]
    command = next(line.strip() for line in text.splitlines() if line.startswith("  --"))
    assert command == " ".join(f"--{key} {value}" for key, value in overrides.items())
    _, then = run(*arguments, *command.split())
    assert then["fits"] is True
    assert then["missing_bytes"] == 0
    peak = max(then["update"]["peak_bytes"], then["rollout"]["peak_bytes"])
    assert peak == found["advice"]["estimated_peak_bytes"]


def test_overrides_change_the_plan(run, tiny):
    base = "--config", tiny, "--topology", "gpu:h200x4"
    _, plain = run(*base)
    _, waves = run(*base, "--sampling.max-rows", "4")
    assert (plain["num_waves"], waves["num_waves"]) == (1, 4)
    assert waves["rollout"]["peak_bytes"] < plain["rollout"]["peak_bytes"]
    _, mesh = run(*base, "--mesh.data", "1", "--mesh.fsdp", "2", "--mesh.tensor", "2")
    assert mesh["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
    assert mesh["update"]["estimate_bytes"]["weights"] < plain["update"]["estimate_bytes"]["weights"]
    assert mesh["update"]["flops"] == pytest.approx(plain["update"]["flops"])


def test_the_config_s_own_mesh_grows_with_the_devices(run):
    _, found = run("--config", LARGE, "--topology", "v5e:4x4", "--slices", "2", "--estimate-only")
    assert (found["num_slices"], found["num_chips"]) == (2, 32)
    assert found["mesh"] == {"data": 1, "fsdp": 8, "tensor": 4}


SFT = """
    from tests.tiny import sft_config
    def get_config():
        return sft_config()
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--topology", "cpu"], ["--config is missing", "python -m polyepo_jax.plan"]),
        (["--config", "TINY"], ["--topology is missing", "v5e:4x4"]),
        (
            ["--config", "TINY", "--topology", "v5:4x4"],
            ["--topology v5:4x4", "unknown TPU generation 'v5'", "known: v2"],
        ),
        (["--config", "TINY", "--topology", "cpu", "--slices", "2"], ["--slices 2", "only TPUs come in slices"]),
        (["--config", "TINY", "--topology", "v5e:2x2", "--slices", "two"], ["expected a number of slices", "'two'"]),
        (["--config", "TINY", "--topology", "v5e:2x2", "--slices", "0"], ["at least 1", "0"]),
        (
            ["--config", "TINY", "--topology", "gpu:h200x4", "--mesh.data", "1", "--mesh.tensor", "4"],
            ["mesh.tensor = 4", "heads = 2", "data=2 fsdp=1 tensor=2"],
        ),
        (["--config", "TINY", "--topology", "gpu:h200x3"], ["= 3 does not divide", "16 rows", "no mesh of 3 devices"]),
        (
            ["--config", "TINY", "--topology", "gpu:h200x4", "--mesh.data", "3"],
            ["data=3", "4 devices", "data=4 fsdp=1 tensor=1"],
        ),
        (
            ["--config", "TINY", "--topology", "cpu", "--json", "no/such/plan.json"],
            ["--json no/such", "does not exist"],
        ),
        (["--config", "TINY", "--topology"], ["--topology needs a value"]),
        (["--config", "SFT", "--topology", "cpu"], ["SFTConfig", "Config"]),
        (["--config", "none.py", "--topology", "cpu"], ["none.py"]),
    ],
)
def test_bad_input_is_named(tmp_path, tiny, arguments, expected):
    sft = tmp_path / "sft.py"
    sft.write_text(textwrap.dedent(SFT))
    arguments = [{"TINY": tiny, "SFT": str(sft)}.get(argument, argument) for argument in arguments]
    with pytest.raises(InputError) as error:
        plan.main(arguments)
    message = str(error.value)
    for part in expected:
        assert part in message
    assert "\n" not in message


def test_an_unknown_override_is_refused(tiny, capsys):
    with pytest.raises((InputError, SystemExit)) as ended:
        plan.main(["--config", tiny, "--topology", "cpu", "--sampling.max-row", "4"])
    assert "max-row" in str(ended.value) + capsys.readouterr().err


def test_help(capsys, tiny):
    plan.main(["--help"])
    text = capsys.readouterr().out
    for flag in ("--config", "--topology", "--slices", "--json", "--estimate-only", "--compile-advice", "gpu:h200x4"):
        assert flag in text
    assert "--sampling.max-rows" not in text
    with pytest.raises(SystemExit) as ended:
        plan.main(["--config", str(LARGE), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--topology" in text
    assert "--sampling.max-rows" in text
    assert "Qwen3-4B" in text


# What the advice is made of.


def large(**changes) -> Config:
    return dataclasses.replace(load(LARGE, Config), **changes)


def limited(gib: float):
    """A v5e with other memory."""
    return dataclasses.replace(parse_topology("v5e:4x4").chip, hbm_bytes=int(gib * GIB))


def settings_changed(config, other):
    return (
        (config.mesh != other.mesh)
        + (config.algorithm.micro_batch_size != other.algorithm.micro_batch_size)
        + (config.sampling.max_rows != other.sampling.max_rows)
        + (config.model.remat != other.model.remat)
    )


SIZES = (1, 4, 4)


@pytest.mark.parametrize(
    ("gib", "remat", "number"),
    [(10.8, "full", 1), (6.9, "full", 2), (12.0, "none", 1), (10.0, "none", 2), (4.0, "full", None)],
)
def test_advice_changes_the_fewest_settings(gib, remat, number):
    config = large(mesh=MeshConfig(*SIZES))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
    chip = limited(gib)
    assert max(peak_bytes(config, SIZES, "tpu")) > chip.hbm_bytes
    change = nearest_change(config, SIZES, "tpu", chip)
    if number is None:
        assert change is None
        return
    assert change.peak_bytes <= chip.hbm_bytes
    assert max(peak_bytes(change.config, change.sizes, "tpu")) == change.peak_bytes
    assert settings_changed(config, change.config) == number
    # No single setting would have done where two were changed.
    singles = [
        *(dataclasses.replace(config, sampling=SamplingConfig(max_rows=rows)) for rows in (8, 16, 32, 64)),
        *(
            dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, micro_batch_size=rows))
            for rows in (4, 8)
        ),
        dataclasses.replace(config, model=dataclasses.replace(config.model, remat="full")),
        *(
            dataclasses.replace(config, mesh=MeshConfig(16 // f // t, f, t))
            for f in (1, 2, 4, 8, 16)
            for t in (1, 2, 4, 8)
            if f * t <= 16
        ),
    ]
    fitting = [
        single
        for single in singles
        for sizes in [(single.mesh.data, single.mesh.fsdp, single.mesh.tensor)]
        if why_not(single, sizes) is None and max(peak_bytes(single, sizes, "tpu")) <= chip.hbm_bytes
    ]
    assert bool(fitting) == (number == 1)


def test_advice_counts_what_the_compiler_needs_beyond_the_estimate():
    config = large(mesh=MeshConfig(*SIZES))
    chip = limited(10.8)
    plain = nearest_change(config, SIZES, "tpu", chip)
    scaled = nearest_change(config, SIZES, "tpu", chip, (1.0, 1.5))
    assert rollout_memory(scaled.config, shape_of(scaled.config, scaled.sizes, "tpu")).total * 1.5 <= chip.hbm_bytes
    assert scaled.config != plain.config


@pytest.mark.parametrize("gib", [8.0, 10.0, 15.75, 60.0])
def test_the_largest_wave_is_the_largest(gib):
    config, chip = large(mesh=MeshConfig(*SIZES)), limited(gib)
    most = largest_wave(config, SIZES, "tpu", chip)

    def fits(rows):
        changed = dataclasses.replace(config, sampling=SamplingConfig(max_rows=rows))
        if why_not(changed, SIZES) is not None:
            return None
        return wave_rows(changed, 4), peak_bytes(changed, SIZES, "tpu")[1] <= chip.hbm_bytes

    found = [fits(rows) for rows in range(8, 1025, 8)]
    assert most == max(rows for rows, fit in filter(None, found) if fit)
    assert most % 8 == 0
    if gib < 60:
        assert not all(fit for _, fit in filter(None, found))


def test_no_wave_fits_where_weights_do_not():
    assert largest_wave(large(), SIZES, "tpu", limited(1)) is None


@pytest.mark.parametrize(
    ("name", "slices", "expected"),
    [
        ("v5e:1x1", 1, ["v5e:1x2", "v5e:2x2", "v5e:2x4"]),
        ("v5e:16x16", 1, ["v5e:16x16 2", "v5e:16x16 4"]),
        ("v5p:2x2x1", 1, ["v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4"]),
        ("tpu7x:2x2x1", 2, ["tpu7x:2x2x2 2", "tpu7x:2x2x4 2"]),
        ("gpu:h200x3", 1, ["gpu:h200x6", "gpu:h200x12"]),
    ],
)
def test_more_devices_are_twice_as_many(name, slices, expected):
    topology = parse_topology(name, slices)
    for text in expected:
        name, _, number = text.partition(" ")
        larger = advice._doubled(topology)
        assert larger == parse_topology(name, int(number or 1))
        assert larger.num_devices == 2 * topology.num_devices
        topology = larger


def test_there_is_no_larger_cpu():
    assert fewest_devices(large(), parse_topology("cpu")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (amount(1.996e17, "FLOP"), "200 PFLOP"),
        (amount(999.6, "B"), "1.00 kB"),
        (amount(0, "B"), "0.00 B"),
        (amount(47.44e15, "FLOP"), "47.4 PFLOP"),
        (amount(11_596.4e9, "B"), "11.6 TB"),
        (size(15.75 * GIB), "15.75 GiB"),
        (size(2**20), "1.0 MiB"),
        (duration(0.00123), "0.00123 s"),
        (duration(1302), "21.7 min"),
        (duration(1_105_920), "307.2 h"),
    ],
)
def test_units(text, expected):
    assert text == expected


# Compiled for TPUs that are not there.

LONG_VOCABULARY = """
    import dataclasses
    from polyepo_jax.config import AlgorithmConfig
    from polyepo_jax.sharding import MeshConfig
    from tests.tiny import rl_config

    def get_config():
        config = rl_config(
            mesh=MeshConfig(-1, 2, 2), prompts_per_step=2, max_prompt_length=128, max_completion_length=512
        )
        model = dataclasses.replace(
            config.model, vocab_size=65536, hidden_size=128, intermediate_size=128, num_key_value_heads=2, head_dim=32,
            tie_word_embeddings=True, dtype="bfloat16", remat="full", attention="xla",
        )
        return dataclasses.replace(config, model=model)
"""
# Of a device: 4 rows, 512 scored positions, half of the vocabulary, float32.
LOGITS_BYTES = 4 * 512 * 32768 * 4


@pytest.fixture
def long_vocabulary(tmp_path):
    path = tmp_path / "long_vocabulary.py"
    path.write_text(textwrap.dedent(LONG_VOCABULARY))
    return str(path)


@needs_libtpu
@pytest.mark.slow
def test_a_plan_for_tpus_is_compiled(run, long_vocabulary):
    text, found = run("--config", long_vocabulary, "--topology", "v5e:2x2")
    for name in ("update", "rollout"):
        phase = found[name]
        assert phase["compiled"] is True
        assert 0 < phase["compiled_peak_bytes"] <= phase["peak_bytes"] < found["hbm_limit_bytes"]
        assert phase["resident_bytes"] == (0 if name == "update" else phase["estimate_bytes"]["optimizer"])
        kinds = {row["kind"] for row in found["collectives"] if row["program"] == name and row["bytes"] > 0}
        assert kinds >= {"all-gather", "all-reduce"}
        # Never the logits of all positions.
        assert 0 < phase["largest_arrays"][0][0] <= LOGITS_BYTES / 2
    assert not any(row["between_slices"] for row in found["collectives"])
    assert {row["group_size"] for row in found["collectives"]} >= {2}
    assert found["fits"] is True
    assert "compiled peak" in text
    assert "fits: at the larger peak" in text


@pytest.mark.slow
@needs_libtpu
def test_slices_and_unbounded_logits_show(run, long_vocabulary, monkeypatch):
    spec_of = programs.update_spec
    monkeypatch.setattr(programs, "update_spec", lambda config: dataclasses.replace(spec_of(config), max_logits=2**60))
    _, found = run("--config", long_vocabulary, "--topology", "v5e:2x2", "--slices", "2")
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert any(row["between_slices"] and row["bytes"] > 0 for row in found["collectives"])
    # Half of the rows, since there are twice the devices.
    assert found["update"]["largest_arrays"][0][0] >= LOGITS_BYTES / 2
    assert found["rollout"]["largest_arrays"][0][0] < LOGITS_BYTES / 2


def test_refusal_by_the_compiler_is_a_plan_too(run, tiny, monkeypatch):
    refused = programs.TooLarge(int(20 * GIB), int(15.75 * GIB))
    fitting = programs.Program(2**20, 2**19, 2**19, 1.0, (), [(1, "f32[]", "x")])
    monkeypatch.setattr("polyepo_jax.planning.plan.topology_mesh", lambda *_: None)
    monkeypatch.setattr("polyepo_jax.planning.plan.compile_update", lambda *_: refused)
    monkeypatch.setattr("polyepo_jax.planning.plan.compile_rollout", lambda *_: fitting)
    text, found = run("--config", tiny, "--topology", "v5e:2x2")
    assert found["fits"] is False
    assert found["missing_bytes"] == pytest.approx(4.25 * GIB)
    assert "does not fit: the update lacks 4.25 GiB" in text
    refused = programs.TooLarge(None, None)
    monkeypatch.setattr("polyepo_jax.planning.plan.compile_update", lambda *_: refused)
    text, found = run("--config", tiny, "--topology", "v5e:2x2")
    assert found["fits"] is False
    assert "without a number" in text
