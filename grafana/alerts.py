"""Alerts: each with its expression, how long it must hold, and what to tell whoever is woken."""

import json

# Results of handshakes that were refused for another replica to take.
ON_PURPOSE = "draining|connection_limit|rate_limit"
DELIVERY, APPEND = "plenum_delivery_duration_seconds", "plenum_log_append_duration_seconds"


def increase(metric, which, by="by (job) "):
    return f"sum {by}(increase({metric}{{{which}}}[5m]))"


def handshakes(which, by="by (job) "):
    return increase("plenum_handshakes_total", which, by)


def average(metric, which="", window="5m", by="by (job) "):
    return f"sum {by}(rate({metric}_sum{{{which}}}[{window}])) / (sum {by}(rate({metric}_count{{{which}}}[{window}])) > 0)"


def publish_to_queue(*how):
    """Average seconds from a publish to subscribers' queues; where one part did not happen, the other."""
    append, delivery = average(APPEND, *how), average(DELIVERY, *how)
    return f"{append} + {delivery} or {append} or {delivery}"


def commands(which):
    return increase("plenum_commands_total", which) + " + " + increase("plenum_api_requests_total", which)


ALERTS = [
    {
        "alert": "PlenumConnectSuccessLow",
        # A replica that drains, is full, or takes no more this second refuses on purpose: the proxy takes another, and would make
        # several refusals of one client's handshake.
        "expr": handshakes('result="accepted"') + " / (" + handshakes(f'result!~"{ON_PURPOSE}"') + " > 20) < 0.95",
        "for": "5m",
        "severity": "critical",
        "summary": "Fewer than 95 % of the handshakes become connections",
        "description": "{{ $value | humanizePercentage }} of the handshakes of {{ $labels.job }} became connections over the last "
        "5 minutes. The board Overview shows the reasons: origins, certificates, bad requests.",
    },
    {
        "alert": "PlenumFull",
        # One full replica is no matter, because the proxy takes another; what has no connections serves no clients.
        "expr": 'min by (job) (increase(plenum_handshakes_total{result="connection_limit"}[5m]) and on (job, instance) '
        "(plenum_connections > 0)) > 0",
        "for": "5m",
        "severity": "critical",
        "summary": "All replicas have as many connections as they may",
        "description": "Every replica of {{ $labels.job }} that serves clients refuses more of them (client.connection_limit): add "
        "replicas, or raise the limit together with memory and open files.",
    },
    {
        "alert": "PlenumLatencyHigh",
        "expr": "(" + publish_to_queue() + ") > 0.2",
        "for": "5m",
        "severity": "warning",
        "summary": "Publications take over 200 ms on average",
        "description": "On average {{ $value | humanizeDuration }} pass in {{ $labels.job }} between a publish and subscribers' "
        "queues. Append latency and Delivery latency on the board Overview show where; look at CPU, NATS round trips and disks, "
        "doubtful shards, and clocks.",
    },
    {
        "alert": "PlenumMemoryHigh",
        "expr": "process_resident_memory_bytes / on (job, instance) (plenum_memory_limit_bytes > 0) > 0.8",
        "for": "5m",
        "severity": "warning",
        "summary": "A process uses over 80 % of the memory it may have",
        "description": "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of its limit: add replicas, lower "
        "client.connection_limit, or raise the limit before the kernel ends it.",
    },
    {
        "alert": "PlenumErrorsHigh",
        "expr": "(" + commands('code!="0"') + ") / ((" + commands("") + ") > 100) > 0.05",
        "for": "5m",
        "severity": "warning",
        "summary": "Over 5 % of commands and API calls fail",
        "description": "{{ $value | humanizePercentage }} of the commands and API calls of {{ $labels.job }} ended with an error "
        "over the last 5 minutes. The board Overview shows methods and codes.",
    },
    {
        "alert": "PlenumLogDoubtful",
        "expr": "max by (job, instance) (plenum_nats_doubtful_shards) > 0",
        "for": "1m",
        "severity": "critical",
        "summary": "Shards of the log give no sign of life",
        "description": "{{ $labels.instance }} has heard no tick of {{ $value }} shards for over a minute: publishing fails there, "
        "and nothing is reported as recovered. Look at the NATS servers: leaders, disks, the network between them.",
    },
]


def text():
    # JSON is YAML; strings in quotes need no care for what they hold.
    lines = [
        "# Written by grafana/generate from alerts.py.",
        "groups:",
        "  - name: plenum",
        "    rules:",
    ]
    for alert in ALERTS:
        lines += [
            f"      - alert: {alert['alert']}",
            f"        expr: {json.dumps(alert['expr'])}",
            f"        for: {alert['for']}",
            "        labels:",
            f"          severity: {alert['severity']}",
            "        annotations:",
            f"          summary: {json.dumps(alert['summary'])}",
            f"          description: {json.dumps(alert['description'])}",
        ]
    return "\n".join(lines) + "\n"
