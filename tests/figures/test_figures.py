"""Tests of what the figures say of a table, and of the files they become."""

from __future__ import annotations

import html
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.defaults import ARCHITECTURE
from sae_lens_hierarchical.eval.table import (
    BudgetMetrics,
    MetricsTable,
    write_table,
)
from sae_lens_hierarchical.figures import (
    all_figures,
    draw,
    html_page,
    overview,
    paper,
    table_2,
)
from sae_lens_hierarchical.figures.seeds import merge_seeds
from sae_lens_hierarchical.figures.spec import Figure, Series
from sae_lens_hierarchical.figures.write import remove_results, write_figures

KS = [1, 2, 4, 8, 16]
D_SAE = 50


def make_row(
    sae: str, architecture: str, trained_k: int, activation: str, k: int
) -> BudgetMetrics:
    seed = [len(sae), trained_k, len(activation), k]
    random = np.random.default_rng(seed)
    frequency = random.random(D_SAE).astype(np.float32)
    frequency[: 10 - k // 2] = 0
    squared = np.where(frequency > 0, 3 * frequency, np.nan).astype(np.float32)
    cosines = random.random(k - 1 if activation == "topk" else 0).astype(np.float32)
    return BudgetMetrics(
        sae=sae,
        architecture=architecture,
        trained_k=trained_k,
        activation=activation,
        k=k,
        tokens=500_000,
        ce_tokens=100,
        l0=k - 0.25,
        explained_variance=float(random.random()),
        fvu_centered=float(random.random()),
        mse=1.5,
        cosine_similarity=0.9,
        ce_loss_score=0.3,
        kl_div=0.1,
        dead_features=10 - k // 2,
        almost_dead_features=11 - k // 2,
        frequency=frequency,
        mean_squared_activation=squared,
        cosine_to_next=cosines,
    )


def make_sae(
    sae: str, architecture: str, trained_k: int, *activations: str
) -> list[BudgetMetrics]:
    return [
        make_row(sae, architecture, trained_k, activation, k)
        for activation in activations
        for k in ([trained_k] if activation == "own" else KS)
    ]


class Page(HTMLParser):
    """A page's text, tags, their attributes, plots, and tables by their headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.plots: list[dict[str, Any]] = []
        self.attributes: set[str] = set()
        self._cells: list[list[list[str]]] = []
        self.feed(page)
        self.tables = [
            [dict(zip(head, row, strict=True)) for row in rows]
            for head, *rows in self._cells
        ]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.plots += [json.loads(str(v)) for name, v in attrs if name == "data-plot"]
        if tag == "table":
            self._cells.append([])
        elif tag == "tr":
            self._cells[-1].append([])
        elif tag in ("th", "td"):
            self._cells[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["script"]:
            self.text += data
        if self.tags[-1:] in (["th"], ["td"]):
            self._cells[-1][-1][-1] += data.strip()


@pytest.fixture
def table() -> MetricsTable:
    return MetricsTable(
        [
            *make_sae("J_1", ARCHITECTURE, 8, "topk", "jumprelu"),
            *make_sae("J_4", ARCHITECTURE, 8, "topk"),
            *make_sae("T-4", "topk", 4, "topk"),
            *make_sae("T-2", "topk", 2, "topk", "jumprelu"),
            *make_sae("B-3", "batchtopk", 3, "topk", "jumprelu", "own"),
            *make_sae("B-4", "batchtopk", 4, "topk", "own"),
            *make_sae("R-4", "jumprelu", 4, "topk", "own"),
        ],
        {"model": "tiny & small", "data": {"name": "</dd>"}},
    )


def lines(figure: Figure | None, panel: int = 0) -> dict[str, Series]:
    assert figure is not None
    return {series.label: series for series in figure.panels[panel].series}


def points(series: Series) -> list[tuple[str, float, float]]:
    return list(zip(series.names, series.x, series.y, strict=True))


def marks(figure: Figure | None, panel: int = 0) -> dict[str, set[tuple[float, float]]]:
    assert figure is not None
    found: dict[str, set[tuple[float, float]]] = {}
    for one in figure.panels[panel].series:
        new = {(one.x[n], one.y[n]) for n in one.marked}
        found[one.label] = found.get(one.label, set()) | new
    return found


def test_every_figure_is_there_and_can_be_drawn(table: MetricsTable) -> None:
    figures = all_figures(table, {("J_1", 2): 0.8})

    numbers = [2, 3, 4, 5, 6, 8, 9, 10]
    assert [figure.key for figure in figures] == [
        "overview",
        *(f"figure_{n}" for n in numbers),
    ]
    for figure in figures:
        drawn = draw(figure).axes
        assert [
            len(axes.lines) - (panel.x_mark is not None)
            for axes, panel in zip(drawn, figure.panels, strict=True)
        ] == [len(panel.series) for panel in figure.panels]


def test_overview_marks_the_trained_k(table: MetricsTable) -> None:
    figure = overview(table)

    for panel, metric in enumerate(
        ["explained_variance", "ce_loss_score", "dead_features"]
    ):
        expected: dict[str, set[tuple[float, float]]] = {}
        for sae, activation, k in [
            ("J_1", "topk", 8),
            ("J_4", "topk", 8),
            ("T-4", "topk", 4),
            ("T-2", "topk", 2),
            ("B-3", "own", 3),  # which was not evaluated with its 3 largest features
            ("B-4", "topk", 4),
            ("R-4", "topk", 4),
        ]:
            (row,) = table.select(sae=sae, activation=activation, k=k)
            expected[sae] = {(k, getattr(row, metric))}
        assert marks(figure, panel) == expected


def test_marked_points_have_markers(table: MetricsTable) -> None:
    figure = overview(table)

    assert figure is not None
    drawn = {str(line.get_label()): line for line in draw(figure).axes[0].lines}
    plot, *_ = Page(html_page("", [figure], table)).plots
    sizes = {line["name"]: line["marker"]["size"] for line in plot["data"]}
    assert drawn["T-2"].get_markevery() == [KS.index(2)]
    assert drawn["J_1"].get_markevery() == [KS.index(8)]
    assert [size > 0 for size in sizes["T-2"]] == [k == 2 for k in KS]
    assert [size > 0 for size in sizes["J_1"]] == [k == 8 for k in KS]


def test_seeds_are_a_line_of_means_with_a_band(table: MetricsTable) -> None:
    # Another SAE of the same name but for the seed, better by 0.1 at every k.
    better = [
        replace(row, sae="J_1-seed1", explained_variance=row.explained_variance + 0.1)
        for row in table.select(sae="J_1")
    ]
    seeds = [replace(row, sae="J_1-seed0") for row in table.select(sae="J_1")]
    others = [row for row in table.rows if row.sae != "J_1"]
    merged = MetricsTable([*seeds, *better, *others])

    figure = all_figures(merged)[0]

    before = lines(overview(table))["J_1"]
    line = lines(figure)["J_1"]
    assert line.y == pytest.approx([y + 0.05 for y in before.y])
    assert line.band == tuple((y, y + 0.1) for y in before.y)
    assert lines(figure)["T-2"] == lines(overview(table))["T-2"]
    (shaded,) = draw(figure).axes[0].collections
    corners = np.asarray(shaded.get_paths()[0].vertices)
    assert corners[:, 1].max() == pytest.approx(max(before.y) + 0.1)
    plot, *_ = Page(html_page("", [figure], merged)).plots
    assert sum(line.get("fill") == "toself" for line in plot["data"]) == 1
    captions = {one.key: one.caption for one in all_figures(merged)}
    assert "bands go from the lowest to the highest" in captions["overview"]
    assert "Of several seeds the first" in captions["figure_8"]
    first, *_ = Page(html_page("", [], merged)).tables[0]
    assert first["SAE"] == "J_1"
    assert float(first["explained variance"]) == pytest.approx(line.y[0], abs=1e-4)


def test_seeds_with_their_own_thresholds_differ_in_k(table: MetricsTable) -> None:
    # One of the seeds has an L0 of 7.6, the other of 9.4.
    seeds = [
        replace(row, sae=f"R-4-seed{seed}", trained_k=k, k=own)
        for seed, k in enumerate((8, 9))
        for row in table.select(sae="R-4")
        for own in [k if row.activation == "own" else row.k]
    ]
    seeds = [
        replace(row, l0=(7.6, 9.4)[row.k - 8]) if row.activation == "own" else row
        for row in seeds
    ]
    others = [row for row in table.rows if row.sae != "R-4"]

    merged = merge_seeds(MetricsTable([*others, *seeds]))

    rows = merged.select(sae="R-4")
    assert [(row.activation, row.k) for row in rows] == [
        *(("topk", k) for k in KS),
        ("own", 8),
    ]
    assert {row.trained_k for row in rows} == {8}
    assert rows[-1].l0 == pytest.approx(8.5)
    figures = {one.key: one for one in all_figures(MetricsTable([*others, *seeds]))}
    assert lines(figures["figure_2"])["JumpReLU"].x == pytest.approx([8.5])


def test_pareto_has_baselines_at_their_own_k_only(table: MetricsTable) -> None:
    for panel, metric in enumerate(["explained_variance", "fvu_centered"]):

        def point(
            sae: str, activation: str, k: int, metric: str = metric
        ) -> tuple[str, float, float]:
            (row,) = table.select(sae=sae, activation=activation, k=k)
            return sae, row.l0, getattr(row, metric)

        curves = lines(paper.pareto(table), panel)
        assert {label: points(curve) for label, curve in curves.items()} == {
            "HierarchicalTopK": [point("J_1", "topk", k) for k in KS],
            "TopK": [point("T-2", "topk", 2), point("T-4", "topk", 4)],
            "BatchTopK": [point("B-3", "own", 3), point("B-4", "own", 4)],
            "JumpReLU": [point("R-4", "own", 4)],
        }


def test_the_papers_fvu_is_shown_as_what_it_is(table: MetricsTable) -> None:
    figure = paper.pareto(table)

    assert figure is not None
    assert [panel.y_label for panel in figure.panels] == [
        "explained variance",
        "centered FVU",
    ]
    assert "leaves out the mean error" in figure.caption
    table_2_html = html_page("", [], table).split("<h2>All metrics")[0]
    assert "leaves out the mean error" in table_2_html


def test_the_pages_numbers_add_up(table: MetricsTable) -> None:
    *_, all_metrics = Page(html_page("", [], table)).tables

    assert len(all_metrics) == len(table.rows)
    for row in all_metrics:
        ev, fvu = float(row["explained variance"]), float(row["FVU"])
        assert ev + fvu == pytest.approx(1, abs=2e-4)
        centered, bias = float(row["centered FVU"]), float(row["bias"])
        assert centered + bias == pytest.approx(fvu, abs=2e-4)


def test_changing_k_has_a_panel_for_each_family(table: MetricsTable) -> None:
    figure = paper.changing_k(table)

    assert figure is not None
    assert {
        panel.title: list(lines(figure, n)) for n, panel in enumerate(figure.panels)
    } == {
        "TopK": ["J_1", "T-2", "T-4"],
        "BatchTopK": ["J_1", "B-3", "B-4"],
        "JumpReLU": ["J_1", "R-4"],
    }
    assert all(panel.x_mark == (8, "K = 8") for panel in figure.panels)
    assert {x for x, _ in marks(figure)["T-2"]} == {2}
    assert lines(figure)["T-2"].x == tuple(KS)


def test_pointwise_loss_is_compared_with_the_first(table: MetricsTable) -> None:
    values = {
        sae: [
            row.explained_variance for row in table.select(sae=sae, activation="topk")
        ]
        for sae in ("J_1", "J_4")
    }

    differences = lines(paper.pointwise_loss(table), panel=1)

    assert differences["J_1"].y == (0,) * len(KS)
    assert list(differences["J_4"].y) == [
        other - first for other, first in zip(values["J_4"], values["J_1"], strict=True)
    ]


def test_almost_dead_features_name_the_tokens(table: MetricsTable) -> None:
    figure = paper.almost_dead(table)

    assert list(lines(figure)) == ["J_1", "T-4", "B-4", "R-4", "optimal scaling"]
    assert lines(figure)["optimal scaling"].names == ("B-3", "B-4")
    assert figure is not None
    assert "500,000 tokens" in figure.caption


def test_few_tokens_have_no_almost_dead_features(table: MetricsTable) -> None:
    row, *rows = table.rows
    few = MetricsTable([replace(row, tokens=99_999), *rows])

    assert "figure_5" not in [figure.key for figure in all_figures(few)]
    page = Page(html_page("", all_figures(few), few))
    assert "Figure 5" not in page.text
    assert "Figure 4" in page.text


def test_autointerp_takes_scores_at_the_own_k(table: MetricsTable) -> None:
    scores: paper.Scores = {
        ("J_1", 8): 0.7,
        ("J_1", 2): 0.8,
        ("T-2", 2): 0.9,
        ("T-2", 4): 0.1,
        ("B-3", None): 0.6,
        ("unknown", None): 0.5,
    }

    curves = lines(paper.autointerp(table, scores))

    assert {label: points(curve) for label, curve in curves.items()} == {
        "J_1": [("J_1", 2, 0.8), ("J_1", 8, 0.7)],
        "TopK": [("T-2", 2, 0.9)],
        "BatchTopK": [("B-3", 3, 0.6)],
    }
    assert paper.autointerp(table, {}) is None


def test_cosines_go_as_far_as_the_sae_was_trained(table: MetricsTable) -> None:
    curve = lines(paper.decoder_cosines(table))["T-4"]
    (row,) = table.select(sae="T-4", activation="topk", k=4)

    assert curve.x == (1, 2, 3)
    assert list(curve.y) == row.cosine_to_next.tolist()


def test_histograms_count_every_living_feature(table: MetricsTable) -> None:
    figure = paper.distributions(table)

    for panel in range(2):
        curves = lines(figure, panel)
        assert {label: sum(curve.y) for label, curve in curves.items()} == {
            "J_1 (6 never active)": D_SAE - 6,
            "T-4 (8 never active)": D_SAE - 8,
            "B-4 (8 never active)": D_SAE - 8,
            "R-4 (8 never active)": D_SAE - 8,
        }
        assert len({curve.x for curve in curves.values()}) == 1


def test_jumprelu_is_compared_with_topk_at_the_same_k(
    table: MetricsTable,
) -> None:
    def change(sae: str, activation: str, k: int) -> tuple[str, float, float]:
        (row,) = table.select(sae=sae, activation=activation, k=k)
        (base,) = table.select(sae=sae, activation="topk", k=k)
        return sae, k, row.explained_variance - base.explained_variance

    curves = lines(paper.topk_and_jumprelu(table))

    del curves["no change"]
    assert {label: points(curve) for label, curve in curves.items()} == {
        "HierarchicalTopK": [change("J_1", "jumprelu", k) for k in KS],
        "TopK": [change("T-2", "jumprelu", 2)],
        "BatchTopK": [change("B-3", "jumprelu", 2), change("B-4", "own", 4)],
        "JumpReLU": [change("R-4", "own", 4)],
    }


def test_table_2_has_the_saes_of_the_largest_k(table: MetricsTable) -> None:
    assert [(row.sae, row.k) for row in table_2(table)] == [
        (sae, k) for k in (1, 2) for sae in ("J_1", "T-4", "B-4", "R-4")
    ]


@pytest.mark.parametrize(
    ("saes", "expected"),
    [
        ([], []),
        (["J_1"], ["overview", *(f"figure_{n}" for n in (2, 5, 8, 9, 10))]),
        (["T-4"], ["overview", *(f"figure_{n}" for n in (2, 3, 5, 8, 9))]),
    ],
)
def test_figures_without_rows_are_left_out(
    table: MetricsTable, saes: list[str], expected: list[str]
) -> None:
    rows = [row for row in table.rows if row.sae in saes]

    assert [figure.key for figure in all_figures(MetricsTable(rows))] == expected


def test_missing_values_leave_gaps(table: MetricsTable) -> None:
    nan = math.nan
    some = [
        replace(row, ce_loss_score=nan) if row.sae == "T-2" and row.k > 2 else row
        for row in table.rows
    ]
    none = [replace(row, ce_loss_score=nan) for row in table.rows]

    figure = overview(MetricsTable(some))
    without = overview(MetricsTable(none))

    assert figure is not None
    assert without is not None
    shown = [math.isfinite(y) for y in lines(figure, panel=1)["T-2"].y]
    assert shown == [True, True, False, False, False]
    assert np.isfinite(draw(figure).axes[1].get_ylim()).all()
    (plot,) = Page(html_page("", [figure], table)).plots[1:2]
    assert [line["y"] for line in plot["data"] if line["name"] == "T-2"] == [
        [0.3, 0.3, None, None, None]
    ]
    assert [panel.y_label for panel in without.panels] == [
        "explained variance",
        "dead features",
    ]


def test_the_saes_compared_have_their_familys_color(table: MetricsTable) -> None:
    later = [replace(row, sae="T-4, again") for row in table.select(sae="T-4")]
    table = MetricsTable([*table.rows, *later])

    curves = lines(paper.almost_dead(table))

    assert list(curves)[:2] == ["J_1", "T-4, again"]
    families = lines(paper.pareto(table))
    assert curves["J_1"].style == families["HierarchicalTopK"].style
    assert curves["T-4, again"].style == families["TopK"].style


def test_many_saes_have_a_name_for_each_architecture(tmp_path: Path) -> None:
    rows = [
        row
        for architecture in (ARCHITECTURE, "topk", "some_new_one")
        for n in range(12)
        for row in make_sae(f"{architecture}-{n}", architecture, n + 1, "topk")
    ]
    many = MetricsTable(rows)

    figure = overview(many)

    drawn = [series.label for series in figure.panels[0].series]
    assert len(drawn) == 36
    assert drawn[-1] == f"{ARCHITECTURE}-0"  # on top
    assert set(drawn[:-1]) == {"other HierarchicalTopK", "TopK", "some_new_one"}
    assert "one name" in figure.caption
    assert len({series.style for series in figure.legend().values()}) == 4
    draw(figure).savefig(tmp_path / "many.png")
    # Each has a look and a name of its own in figures 3 and 4.
    for detailed in (paper.changing_k(many), paper.pointwise_loss(many)):
        assert detailed is not None
        legend = detailed.legend()
        assert len({series.style for series in legend.values()}) == len(legend) > 10
        draw(detailed).savefig(tmp_path / "many.png")


def test_what_is_far_below_0_is_cut_off_and_named(table: MetricsTable) -> None:
    low = [
        replace(row, explained_variance=-7.5)
        if (row.sae, row.k) in {("J_4", 1), ("T-2", 16)}
        or (row.sae, row.k, row.activation) == ("J_1", 4, "jumprelu")
        else row
        for row in table.rows
    ]
    # Where all differences but one are 0, nothing is squashed.
    low = [
        replace(row, explained_variance=0.5) if (row.sae, row.k) == ("J_4", 2) else row
        for row in low
    ]
    figures = {figure.key: figure for figure in all_figures(MetricsTable(low))}

    for key, names in {
        "overview": ("T-2 (down to -7.5)", "J_4 (down to -7.5)"),
        "figure_3": ("T-2 (down to -7.5)",),
        "figure_4": ("J_4 (down to -7.5)", "minus that of J_1”: J_4 (down to -"),
        "figure_10": ("J_1 (down to -",),
    }.items():
        assert all(name in figures[key].caption for name in names)
        panels = zip(draw(figures[key]).axes, figures[key].panels, strict=True)
        for axes, panel in panels:
            if panel.y_limits is not None:
                assert axes.get_ylim() == panel.y_limits
                assert panel.y_limits[0] > -1.5
    page = Page(html_page("", [*figures.values()], MetricsTable(low)))
    limits = [plot["layout"]["yaxis"].get("range") for plot in page.plots]
    assert limits == [
        panel.y_limits and list(panel.y_limits)
        for figure in figures.values()
        for panel in figure.panels
    ]
    assert not any("Cut off" in figure.caption for figure in all_figures(table))


def test_captions_are_about_what_is_drawn(table: MetricsTable) -> None:
    def captions(*saes: str) -> dict[str, str]:
        rows = [row for row in table.rows if row.sae in saes]
        return {one.key: one.caption for one in all_figures(MetricsTable(rows))}

    everything, without_ours = captions(*table.saes()), captions("T-4", "T-2")

    assert "with its own thresholds" in everything["overview"]
    assert "JumpReLU with their own thresholds" in everything["figure_2"]
    assert "J_x" in everything["figure_4"]
    assert "one for each" in everything["figure_10"]
    for caption in without_ours.values():
        assert "HierarchicalTopK" not in caption
        assert "own threshold" not in caption
        assert "seeds" not in caption
    assert "one k" not in captions("J_1")["figure_10"]
    named = [
        replace(row, sae={"J_1": "a", "J_4": "b"}[row.sae])
        for row in table.rows
        if row.ours
    ]
    figure = paper.pointwise_loss(MetricsTable(named))
    assert figure is not None
    assert "J_x" not in figure.caption


def test_long_names_fit_into_images(table: MetricsTable) -> None:
    name = "someone/a-repository-on-the-hub:layer_12/width_16k/average_l0_82"
    rows = [
        replace(row, sae=name if row.sae == "J_1" else row.sae) for row in table.rows
    ]

    for figure in all_figures(MetricsTable(rows)):
        image = draw(figure)
        image.draw_without_rendering()
        (legend,) = image.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= image.bbox.x1


def test_tables_scroll_within_the_page(table: MetricsTable) -> None:
    source = html_page("", [], table)

    assert source.count("<table>") == 2
    for before in source.split("<table>")[:-1]:
        assert before.rsplit("<", 1)[1].startswith('div class="scroll" tabindex="0"')
    assert ".scroll { overflow: auto;" in source


def test_the_page_shows_no_absolute_path(table: MetricsTable) -> None:
    provenance = {
        "model": "/home/someone/models/tiny",
        "checkpoints": {"A": {"path": "/home/someone/saes/A", "ids": ["/home/b"]}},
        "dataset": "user/texts",
    }

    text = Page(html_page("", [], replace(table, provenance=provenance))).text

    assert "/home" not in text
    assert "…/tiny" in text
    assert "user/texts" in text
    assert "come from" not in html_page("", [], replace(table, provenance={}))


def test_page_has_everything_and_loads_nothing(table: MetricsTable) -> None:
    figures = all_figures(table)

    source = html_page("Tiny <model>", figures, table)

    page = Page(source)
    assert source.count("plotly.js v") == 1
    assert not {"src", "srcset"} & page.attributes
    assert "link" not in page.tags
    assert len(page.plots) == sum(len(figure.panels) for figure in figures)
    for text in (
        "Tiny <model>",
        *(figure.title for figure in figures),
        *(figure.caption for figure in figures),
        *table.saes(),
        "tiny & small",
        "</dd>",
        f"{len(table.rows)} rows",
    ):
        assert text in page.text
    assert page.tags.count("tr") == len(table.rows) + len(table_2(table)) + 2


def test_names_are_no_markup(table: MetricsTable) -> None:
    name = '<b>"T&2"</b></script>$x'
    rows = [replace(row, sae=name) for row in table.rows if row.sae == "T-2"]
    figures = all_figures(MetricsTable(rows))

    page = Page(html_page("", figures, MetricsTable(rows)))

    assert "b" not in page.tags
    assert name in page.text
    line = page.plots[0]["data"][0]
    assert line["name"] == name
    assert line["text"][0] == html.escape(name)
    (legend,) = draw(figures[0]).legends
    assert [text.get_text() for text in legend.get_texts()] == [name]


def test_files_are_written(
    table: MetricsTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "table.parquet", table)
    output = tmp_path / "new" / "folder"

    assert (
        main(["figures", str(tmp_path / "table.parquet"), "--output", str(output)]) == 0
    )

    names = ["overview", *(f"figure_{n}" for n in (2, 3, 4, 5, 8, 9, 10))]
    expected = {*(f"{name}.png" for name in names), "figures.html"}
    assert {path.name for path in output.iterdir()} == expected
    *written, following = capsys.readouterr().out.splitlines()
    assert set(written) == set(map(str, output.iterdir()))
    assert following == "Next: sae-lens-hierarchical push CHECKPOINT USER/NAME"


def test_all_that_is_written_can_be_removed(
    table: MetricsTable, tmp_path: Path
) -> None:
    write_table(tmp_path / "metrics.parquet", table)
    written = write_figures(tmp_path / "figures", table, {("J_1", 2): 0.8})
    assert len(written) == 10

    remove_results(tmp_path)

    assert [path.name for path in tmp_path.rglob("*")] == ["figures"]
