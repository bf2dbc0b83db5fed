from __future__ import annotations

from frostline.cli.timeline_view import timeline_chart
from frostline.finetune.result import ScheduleReport

REPORT = ScheduleReport(
    name="alpha",
    transitions=2,
    places=("stem", "encoder.layer.0", "head"),
    frozen=((0.0, 0.2, 0.5, 0.9, 1.0), (0.0, 0.0, 1.0, 1.0, 1.0), (0.0,) * 5),
)


def test_the_chart():
    assert timeline_chart(REPORT, width=80).plain.splitlines() == [
        "schedule alpha: 2 transitions in 5 epochs",
        "  stem             ·░▒▓█",
        "  encoder.layer.0  ··███",
        "  head             ·····",
        "                   1   5",
        "  · trains  ░▒▓ in part  █ frozen",
    ]


def test_without_unicode():
    text = timeline_chart(REPORT, width=80, ascii_only=True).plain
    assert text.isascii()
    assert "  stem             .-+*#" in text


def test_more_epochs_than_columns_share_them():
    frozen = tuple(float(epoch >= 60) for epoch in range(120))
    report = ScheduleReport(name="x", transitions=1, places=("block" * 9,), frozen=(frozen,))
    text = timeline_chart(report, width=60).plain
    assert max(map(len, text.splitlines())) <= 60
    name, cells = text.splitlines()[1].split()
    assert name == "…" + ("block" * 9)[-27:]
    assert cells == "·" * 12 + "█" * 12
    assert text.splitlines()[2].split() == ["1", "120"]
    assert text.endswith("; 5 epochs a column")


def test_a_single_epoch():
    report = ScheduleReport(name="x", transitions=0, places=("a",), frozen=((1.0,),))
    assert timeline_chart(report, width=40).plain.splitlines()[1:3] == ["  a  █", "     1"]
