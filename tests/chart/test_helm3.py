"""The chart under Helm 3 is the chart under Helm 4."""

from pathlib import Path

import pytest
import yaml

from tests.chart import helm3
from tests.chart.chart import CHART, FILES, YAML, rendered

NAMES = [file.stem for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_helm_3_renders_what_helm_4_renders(file: Path) -> None:
    told = helm3.run(
        *("template", "bricks", CHART, "--namespace", "studio", "--values", file, "--kube-version", "1.33.0")
    )
    objects = [each for each in yaml.load_all(told.stdout, YAML) if each]

    def by_name(every: list[dict[str, object]]) -> list[dict[str, object]]:
        return sorted(every, key=lambda each: (each["kind"], each["metadata"]["name"]))  # type: ignore[index]

    assert by_name(objects) == by_name(rendered(file.stem))


def test_every_file_of_values_passes_helm_3_s_strict_lint() -> None:
    for file in FILES:
        helm3.run("lint", "--strict", CHART, "--values", file)
    helm3.run("lint", "--strict", CHART)


def test_helm_3_refuses_a_misspelt_value() -> None:
    told = helm3.run("template", "bricks", CHART, "--set", "storage.s3.buckets=films", check=False)
    assert told.returncode != 0
    assert "Additional property buckets is not allowed" in told.stderr


def test_helm_3_asks_for_the_bucket() -> None:
    told = helm3.run("template", "bricks", CHART, "--kube-version", "1.33.0", check=False)
    assert told.returncode != 0
    assert "storage.s3.bucket is empty: name the bucket" in told.stderr


def test_an_older_cluster_is_refused() -> None:
    told = helm3.run(
        *("template", "bricks", CHART, "--kube-version", "1.32.9", "--set", "storage.s3.bucket=films"), check=False
    )
    assert told.returncode != 0
    assert ">=1.33.0-0" in told.stderr
