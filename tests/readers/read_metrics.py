"""Reads /metrics with Prometheus' own parsers and prints the samples as JSON: read_metrics.py URL [openmetrics]."""

import json
import sys
import urllib.request

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser


def main(url, form="text"):
    accept = {"text": "text/plain;version=0.0.4", "openmetrics": "application/openmetrics-text;version=1.0.0"}[form]
    answer = urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=20)
    kind, text = answer.headers["Content-Type"], answer.read().decode()
    assert kind.startswith(accept.split(";")[0]), kind
    read = parser.text_string_to_metric_families if form == "text" else openmetrics_parser.text_string_to_metric_families
    families = list(read(text))
    assert all(family.documentation and family.type != "unknown" for family in families), "a family says what it is"
    samples = [[sample.name, sample.labels, sample.value] for family in families for sample in family.samples]
    print(json.dumps({"types": {family.name: family.type for family in families}, "samples": samples}))


main(*sys.argv[1:])
