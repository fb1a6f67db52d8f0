"""Queries of Prometheus, taken apart: which metrics and labels they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import promql_parser

from celery_graceful.metrics.catalog import CATALOG, Kind

__all__ = ["KNOWN", "TARGET", "Query", "references"]

#: What Prometheus itself adds to what it collects.
TARGET = {"instance", "job"}


def _names() -> Iterator[tuple[str, set[str]]]:
    for metric in CATALOG:
        if metric.kind is Kind.HISTOGRAM:
            yield f"{metric.prometheus}_bucket", {"le"}
            yield f"{metric.prometheus}_sum", set()
            yield f"{metric.prometheus}_count", set()
        else:
            yield metric.prometheus, set(metric.labels)


#: Each name that can be asked for, and its labels.
KNOWN = dict(_names())


@dataclass
class Query:
    """One query.

    Attributes:
        text: As it is written; variables of Grafana are filled in.
        metrics: The names of metrics in it, each with the labels that are matched.
        grouped: Labels by which it is grouped.
        left: Labels that its answer has.
    """

    text: str
    metrics: list[tuple[str, set[str]]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, text: str) -> Query:
        text = text.replace("$__rate_interval", "5m").replace("$instance", ".*")
        query = cls(text)
        query.left = query._walk(promql_parser.parse(text))
        return query

    def _walk(self, node: Any) -> set[str]:
        """Note what it names; which labels are left of it."""
        if isinstance(node, promql_parser.AggregateExpr):
            self._walk(node.expr)
            labels = set(node.modifier.labels) if node.modifier is not None else set()
            self.grouped |= labels
            return labels
        if isinstance(node, promql_parser.Call):
            left = [self._walk(arg) for arg in node.args]
            gone = {"le"} if node.func.name == "histogram_quantile" else set()
            return set().union(*left) - gone
        if isinstance(node, promql_parser.BinaryExpr):
            return self._walk(node.lhs) | self._walk(node.rhs)
        if isinstance(node, promql_parser.ParenExpr):
            return self._walk(node.expr)
        if isinstance(node, promql_parser.MatrixSelector):
            return self._walk(node.vector_selector)
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, self.text
            self.metrics.append((node.name, {m.name for m in node.matchers.matchers}))
            return KNOWN.get(node.name, set()) | TARGET
        assert isinstance(node, promql_parser.NumberLiteral), type(node)
        return set()

    def wrong(self) -> list[str]:
        """What it names that is not there."""
        found = []
        labels: set[str] = set()
        for name, matched in self.metrics:
            if name not in KNOWN:
                found.append(name)
            labels |= KNOWN.get(name, set()) | TARGET
            found += sorted(matched - KNOWN.get(name, set()) - TARGET)
        return found + sorted(self.grouped - labels)


def references(text: str) -> set[str]:
    """Labels that a text for people has filled in: Grafana's, and those of alerts."""
    return set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))
