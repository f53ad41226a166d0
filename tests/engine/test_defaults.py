"""What `auto` means: by device, model and memory, or as in the store that a run continues."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

import headspan as hs
from headspan.cli.main import main
from headspan.cli.precompute import _advise
from headspan.config import PRECISIONS, PrecomputeSettings, Preprocess, ResolvedSettings
from headspan.errors import SettingsError, StoreError
from headspan.events import NOTE, Progress
from headspan.model.load import LoadedModel
from headspan.run import defaults, memory_estimate, unit_size
from headspan.run.attributes import made_with, store_attributes
from headspan.run.defaults import as_stored, image_bytes_on_gpu, resolved, said
from headspan.run.devices import in_words, named_devices, precision_on
from headspan.run.encoder import Encoder, prepare
from headspan.run.memory_estimate import estimated_bytes
from headspan.run.summary import Summary
from headspan.run.unit_size import chosen_unit_images, divided
from headspan.shards.samples import BadImage
from headspan.store.commit_records import NOT_FINITE
from headspan.store.info import info
from headspan.store.schema import attributes_of, dimensions, image_bytes, row_arrays
from tests.conftest import ToyRun, relative_files

GIB = 1 << 30


class Gpu(NamedTuple):
    """A stand-in for a GPU that this machine lacks."""

    name: str
    total: int
    free: int


H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, 78 * GIB)
T4 = Gpu("Tesla T4", 16 * GIB, 15 * GIB)


def see(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    """Let torch see `gpus`."""

    def of(device: torch.device) -> Gpu:
        return gpus[device.index or 0]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: of(device).name)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (of(device).free, of(device).total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=of(device).total)
    )


def encoder_of(tokens: int, width: int, layers: int, emit: tuple[str, ...] = ("heads",), size: int = 224) -> Any:
    """An encoder with the sizes of a Vision Transformer in fp16 on `cuda:0`, without its weights."""
    tower = SimpleNamespace(
        pos_embed=torch.empty(tokens, width, device="meta"),
        dtype=torch.float16,
        heads=width // 64,
        head_dim=64,
        tokens=tokens,
        terms=layers + 1,
        joint=512,
    )
    return SimpleNamespace(
        tower=tower,
        device=torch.device("cuda", 0),
        layers=tuple(range(layers)),
        through_pool=(),
        emit=emit,
        model=SimpleNamespace(name="ViT", preprocess=Preprocess(size=(size, size))),
    )


@pytest.fixture(autouse=True)
def _stand_ins_are_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checked signatures accept stand-ins."""
    for name in ("resolved", "said", "image_bytes_on_gpu"):
        monkeypatch.setitem(globals(), name, inspect.unwrap(getattr(defaults, name)))
    for name in ("_batch_size", "_in_flight_bytes", "_emitted_bytes", "_patches_bytes", "image_bytes_on_gpu"):
        monkeypatch.setattr(defaults, name, inspect.unwrap(getattr(defaults, name)))


def settings(**values: Any) -> PrecomputeSettings:
    return PrecomputeSettings.from_dict({"shards": "a.tar", "out": "s.zarr", **values})


VIT_L_14 = (257, 1024, 24)
VIT_B_32 = (50, 768, 12)
VIT_L_14_336 = (577, 1024, 24)
ALL = ("heads", "patches", "mlps")


@pytest.mark.parametrize(
    ("sizes", "emit", "gpus", "device", "batch"),
    [
        # The sizes that were fastest on an H100.
        (VIT_L_14, ("heads",), (H100,), "auto", 256),
        # Of 12.6 MB of patches an image, and 0.9 MB.
        (VIT_L_14, ALL, (H100,), "auto", 64),
        (VIT_B_32, ALL, (H100,), "auto", 1024),
        (VIT_B_32, ("heads",), (H100,), "auto", 1024),
        (VIT_L_14_336, ("heads",), (H100,), "auto", 128),
        # The tiny model of a test does not get more.
        ((5, 16, 2), ("heads",), (H100,), "auto", 1024),
        # 15 GiB hold 256 images, and 3 GiB fewer; so does a GPU that two processes share.
        (VIT_L_14, ("heads",), (T4,), "cuda:0", 256),
        (VIT_L_14, ("heads",), (T4._replace(free=3 * GIB),), "cuda:0", 128),
        (VIT_L_14, ("heads",), (T4._replace(free=6 * GIB),), "cuda:0,cuda:0", 128),
        (VIT_L_14, ALL, (T4._replace(free=2 * GIB),), "cuda:0", 16),
        (VIT_L_14, ALL, (T4._replace(free=GIB // 2),), "cuda:0", 1),
        # The smallest GPU decides for all.
        (VIT_L_14, ("heads",), (H100, Gpu("small", 5 * GIB, 5 * GIB)), "auto", 128),
        (VIT_L_14, ("heads",), (H100, Gpu("small", 5 * GIB, 5 * GIB)), "cuda:0", 256),
    ],
)
def test_the_batch_on_a_gpu_follows_from_the_model_and_the_free_memory(
    sizes: tuple[int, int, int],
    emit: tuple[str, ...],
    gpus: tuple[Gpu, ...],
    device: str,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, *gpus)
    found = resolved(settings(device=device), encoder_of(*sizes, emit))
    assert found.batch_size == batch
    assert found.precision == "fp16"
    if batch > 1:
        needed = batch * image_bytes_on_gpu(encoder_of(*sizes, emit))
        assert needed < min(gpus[each.index].free for each in named_devices(device))


def test_every_part_of_an_image_on_a_gpu_is_counted() -> None:
    heads = image_bytes_on_gpu(encoder_of(*VIT_L_14))
    # 24 layers × 16 heads × 257 tokens × 64 numbers in float16, for two batches.
    patches = image_bytes_on_gpu(encoder_of(*VIT_L_14, emit=("heads", "patches"))) - heads
    assert patches == 2 * 24 * 16 * 257 * 64 * 2
    assert image_bytes_on_gpu(encoder_of(*VIT_L_14, emit=("heads", "mlps"))) > heads
    larger = image_bytes_on_gpu(encoder_of(*VIT_L_14, size=448)) - heads
    # Three colours of more pixels: two uint8 copies, two in float32, two in float16.
    assert larger == 3 * (448**2 - 224**2) * (2 + 8 + 4)
    wider = image_bytes_on_gpu(encoder_of(257, 2048, 24)) - heads
    assert wider >= 257 * 1024 * 16 * 2


def test_memory_in_flight_holds_eight_batches_of_pixels_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, H100)
    assert resolved(settings(), encoder_of(*VIT_B_32)).in_flight_bytes == 8 * 1024 * 224 * 224 * 3
    assert resolved(settings(batch_size=8), encoder_of(*VIT_B_32)).in_flight_bytes == 256 << 20
    assert resolved(settings(in_flight_bytes=1000), encoder_of(*VIT_B_32)).in_flight_bytes == 1000


def test_given_values_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, T4)
    found = resolved(settings(batch_size=1000), encoder_of(*VIT_L_14, ALL))
    assert (found.batch_size, found.device) == (1000, "auto")
    assert precision_on(torch.device("cuda", 0), "bf16") == "bf16"
    assert precision_on(torch.device("cpu"), "bf16") == "bf16"
    assert precision_on(torch.device("cuda", 0), "auto") == "fp16"
    assert precision_on(torch.device("cpu"), "auto") == "fp32"


@pytest.mark.parametrize(
    ("gpus", "device", "names"),
    [
        ((), "auto", ["cpu"]),
        ((H100,), "auto", ["cuda:0"]),
        ((H100,) * 3, "auto", ["cuda:0", "cuda:1", "cuda:2"]),
        ((H100,) * 3, "cuda:2, cuda:0", ["cuda:2", "cuda:0"]),
        ((H100,) * 3, "cuda", ["cuda:0"]),
        ((H100,), "cpu", ["cpu"]),
        ((H100,), "cpu,cpu", ["cpu", "cpu"]),
    ],
)
def test_devices_are_found_in_the_order_of_their_names(
    gpus: tuple[Gpu, ...], device: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, *gpus)
    assert [str(found) for found in named_devices(device)] == names


def test_a_list_of_cpu_and_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, H100)
    with pytest.raises(SettingsError, match=r"--device cpu,cuda:0 mixes CPU and GPU, .* name devices of one kind"):
        named_devices("cpu,cuda:0")
    with pytest.raises(SettingsError, match=r"--device cuda:1: torch sees 1 GPU; use auto or cpu"):
        named_devices("cuda:1")


def test_the_first_line_names_devices_precision_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, H100, H100, T4)
    encoder = encoder_of(*VIT_L_14)
    assert said(resolved(settings(device="cuda:1"), encoder), encoder) == (
        "ViT on NVIDIA H100 80GB HBM3, fp16, batches of 256"
    )
    assert said(resolved(settings(batch_size=1024), encoder), encoder) == (
        "ViT on 2 × NVIDIA H100 80GB HBM3, 1 × Tesla T4, fp16, batches of 1,024"
    )
    assert in_words((torch.device("cpu"),)) == "the CPU"


def test_resolved_settings_have_every_field_of_settings_and_no_auto(toy_run: ToyRun, toy_model: LoadedModel) -> None:
    given = settings(**toy_run.settings(device="auto", batch_size="auto"))
    found = resolved(given, prepare(given, lambda: toy_model))
    assert isinstance(found, ResolvedSettings)
    assert [field.name for field in fields(found)] == [field.name for field in fields(given)]
    changed = {field.name for field in fields(found) if getattr(found, field.name) != getattr(given, field.name)}
    assert changed == {"precision", "batch_size", "in_flight_bytes"}
    assert (found.precision, found.batch_size, found.in_flight_bytes) == ("fp32", 32, 256 << 20)


def test_a_run_on_a_cpu_writes_the_same_bytes_as_with_the_values_named(toy_run: ToyRun, tmp_path: Path) -> None:
    common = {**toy_run.settings(device="auto"), "unit_images": None}
    del common["batch_size"]
    events: list[Progress] = []
    hs.precompute(out=tmp_path / "auto.zarr", on_progress=events.append, **common)
    hs.precompute(out=tmp_path / "named.zarr", batch_size=32, precision="fp32", in_flight_bytes=256 << 20, **common)
    assert relative_files(tmp_path / "auto.zarr") == relative_files(tmp_path / "named.zarr")
    attributes = attributes_of(tmp_path / "auto.zarr")
    assert attributes is not None
    assert (attributes["precision"], attributes["made_with"]["batch_size"]) == ("fp32", 32)
    notes = [event.note for event in events if event.stage == NOTE]
    assert "headspan-toy on the CPU, fp32, batches of 32" in notes
    # The first line of a run that reads its plan.
    assert events.index(Progress(NOTE, 0, None, notes[-1])) < [event.stage for event in events].index("planned")


def test_a_run_that_continues_takes_precision_and_batch_from_the_store(toy_run: ToyRun, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(event: Progress) -> None:
        if event.stage == "images" and event.done >= 40:
            raise Stopped

    common = {**toy_run.settings(emit=("heads",), batch_size=3), "precision": "bf16"}
    hs.precompute(out=tmp_path / "whole.zarr", **common)
    with pytest.raises(Stopped):
        hs.precompute(out=tmp_path / "s.zarr", on_progress=stop, **common)
    notes: list[str] = []
    del common["batch_size"], common["precision"]
    hs.precompute(out=tmp_path / "s.zarr", on_progress=lambda event: notes.append(event.note), **common)
    assert "headspan-toy on the CPU, bf16, batches of 3" in notes
    assert relative_files(tmp_path / "s.zarr") == relative_files(tmp_path / "whole.zarr")
    with pytest.raises(StoreError, match=r'made with precision "bf16", but this run asks for "fp32"'):
        hs.precompute(out=tmp_path / "s.zarr", precision="fp32", **common)


def test_a_store_without_a_batch_size_was_made_with_32() -> None:
    assert as_stored(settings(), {"precision": "fp32"}).batch_size == 32
    assert as_stored(settings(), None) == settings()
    existing = {"precision": "bf16", "made_with": {"batch_size": 7}}
    assert as_stored(settings(), existing) == settings(precision="bf16", batch_size=7)
    given = settings(precision="fp16", batch_size=9)
    assert as_stored(given, existing) == given


def test_the_printed_command_names_the_values_that_were_chosen(toy_run: ToyRun, tmp_path: Path) -> None:
    common = toy_run.settings(emit=("heads",), device="cpu,cpu")
    del common["batch_size"]
    hs.precompute(out=tmp_path / "s.zarr", **common)
    command = info(tmp_path / "s.zarr").facts["command"]
    assert " --precision fp32 " in command
    assert " --batch-size 32 " in command
    # Which of several devices computed a unit makes no difference.
    assert " --device cpu " in command


def test_repair_uses_the_first_of_several_devices(toy_copy: Path) -> None:
    assert hs.repair(toy_copy, device="cpu,cpu").verdict.problems == ()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"batch_size": "all"}, r"--batch-size all is not a whole number; give one from 1 to 1,048,576, or auto"),
        ({"precision": "int8"}, rf"--precision int8 is unknown; choose from {', '.join(PRECISIONS)}"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        settings(**values)


def test_the_command_takes_auto_as_a_batch_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["precompute", str(tmp_path / "none.tar"), "--out", str(tmp_path / "s.zarr"), "--model", "reference"]
    assert main([*command, "--batch-size", "auto"]) == 2
    assert "none.tar" in capsys.readouterr().err
    assert main([*command, "--batch-size", "many"]) == 2
    assert capsys.readouterr().err == (
        "headspan: --batch-size many is not a whole number; give one from 1 to 1,048,576, or auto\n"
    )


@pytest.mark.parametrize(
    ("precision", "overflows", "advised"), [("fp16", 3, True), ("fp16", 1, False), ("fp32", 900, False)]
)
def test_many_overflows_in_fp16_are_answered_with_advice(
    precision: str, overflows: int, advised: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [BadImage(row, f"{row}", "a.tar", NOT_FINITE) for row in range(overflows)]
    bad += [BadImage(2000 + row, f"{row}", "a.tar", "damaged") for row in range(500)]
    store: Any = SimpleNamespace(attributes={"precision": precision})
    inspect.unwrap(_advise)(Summary("s.zarr", 1000, bad, 0), store)
    printed = capsys.readouterr().out
    assert printed == (
        "numbers of 3 images overflowed, perhaps in the model's fp16; --precision bf16, with another --out, has the "
        "range of fp32\n"
        if advised
        else ""
    )


def test_the_memory_estimate_grows_with_devices_and_batch(
    toy_run: ToyRun, toy_model: LoadedModel, toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_estimate, "_resident_bytes", lambda: GIB)
    given = settings(**toy_run.settings())
    encoder: Encoder = prepare(given, lambda: toy_model)
    one = resolved(given, encoder)
    specs = toy_store.contents.specs
    alone = estimated_bytes(one, encoder, specs)
    assert GIB + one.in_flight_bytes < alone < 2 * GIB
    # One that plans, and two that hold the model and compute.
    assert estimated_bytes(replace(one, device="cpu,cpu"), encoder, specs) == 3 * GIB + 2 * (alone - GIB)
    pixels = 32 * 32 * 3
    assert estimated_bytes(replace(one, batch_size=107), encoder, specs) >= alone + 4 * 100 * pixels
    assert made_with(replace(one, device="cpu,cpu"), encoder)["device"] == "cpu"
    # In a bucket, two files of each array have a part that is filled, and at most two that are sent.
    sent = estimated_bytes(replace(one, out="s3://bucket/run.zarr"), encoder, specs) - alone
    assert 2 * len(specs) * (8 << 20) < sent <= 6 * len(specs) * (8 << 20)


def test_the_memory_estimate_on_a_gpu_counts_what_decodes(
    toy_run: ToyRun, toy_model: LoadedModel, toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(**toy_run.settings(in_flight_bytes=64 << 20, workers=None))
    encoder: Encoder = prepare(given, lambda: toy_model)
    one = replace(resolved(given, encoder), device="cuda:0", batch_size=100)
    see(monkeypatch, H100, H100)
    monkeypatch.setattr(memory_estimate, "_resident_bytes", lambda: GIB)
    monkeypatch.setattr(Encoder, "device", torch.device("cuda", 0))
    monkeypatch.setattr("headspan.decode.processes.decoder.cores", lambda: 8)

    def estimate(**changed: Any) -> int:
        return estimated_bytes(replace(one, **changed), encoder, toy_store.contents.specs)

    # Nothing but the images in flight, with the GPU's own decoder. Each of seven processes has its own libraries.
    on_gpu, megabyte = estimate(decode="gpu"), 10**6
    assert estimate(decode="gpu", workers=40) == on_gpu
    assert estimate(decode="fast", workers=9) - estimate(decode="fast", workers=8) == 303 * megabyte
    assert estimate(decode="exact", workers=9) - estimate(decode="exact", workers=8) == 45 * megabyte
    # In the ring, three batches more than a part of the memory in flight; it has whole spans, of a quarter of a batch.
    batch = 100 * 32 * 32 * 3
    ring = estimate(decode="exact") - on_gpu - 7 * 45 * megabyte
    assert 3 * batch - batch / 4 < ring <= 3 * batch
    # Two spans in any case.
    assert estimate(decode="exact", in_flight_bytes=2) - estimate(decode="gpu", in_flight_bytes=2) == (
        1 + 302 * batch // 100 + 7 * 45 * megabyte - 2
    )
    # Two processes share the cores, and each keeps one for itself.
    two = estimate(decode="exact", device="cuda:0,cuda:1")
    assert two == 3 * GIB + 2 * (estimate(decode="exact", workers=3) - GIB)


@pytest.mark.parametrize(
    ("planned", "images", "batch", "devices", "row_bytes", "expected"),
    [
        # One device, without patches.
        (16384, 10**6, 1024, 1, None, 16384),
        (16384, 100, 1024, 1, None, 16384),
        # Each device gets at least four units, of a batch at least.
        (16384, 10**6, 1024, 8, None, 16384),
        (16384, 10**5, 1024, 8, None, 2048),
        (16384, 5000, 1024, 8, None, 1024),
        (16384, 5000, 7, 8, None, 128),
        (256, 70, 32, 2, None, 64),
        (256, 70, 10**6, 2, None, 256),
        # Patches of all layers of ViT-L/14 and ViT-B/32, and of rows that are larger than any.
        (1024, 10**6, 64, 1, 12_700_000, 128),
        (1024, 10**6, 1024, 1, 930_000, 1024),
        (1024, 10**6, 1, 1, 1 << 40, 64),
        # A batch that was asked for is not divided.
        (1024, 10**6, 200, 1, 12_700_000, 256),
    ],
)
def test_default_units_follow_from_devices_and_bytes(
    planned: int, images: int, batch: int, devices: int, row_bytes: int | None, expected: int
) -> None:
    assert divided(planned, images, batch, devices, row_bytes) == expected


def test_units_with_patches_on_a_gpu_are_chosen_by_their_bytes(
    toy_run: ToyRun, toy_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(
        **toy_run.settings(),
    )
    encoder: Encoder = prepare(given, lambda: toy_model)
    one = replace(resolved(given, encoder), unit_images=None, emit=("heads", "patches"))
    see(monkeypatch, H100)
    monkeypatch.setattr(unit_size, "_PATCHES_BYTES", 10 << 20)
    assert chosen_unit_images(one, encoder, 256, 10**4) == 256
    monkeypatch.setattr(Encoder, "device", torch.device("cuda", 0))
    on_gpu = replace(one, device="cuda:0")
    found = chosen_unit_images(on_gpu, encoder, 1024, 10**4)
    size = dimensions(store_attributes(on_gpu, encoder, 10**4, found))
    row_bytes = image_bytes(row_arrays(size, on_gpu.emit))
    assert found * row_bytes <= 10 << 20 < 2 * found * row_bytes
    assert chosen_unit_images(replace(on_gpu, emit=("heads",)), encoder, 16384, 10**5) == 16384
    assert chosen_unit_images(replace(on_gpu, unit_images=1024), encoder, 1024, 10**4) == 1024
