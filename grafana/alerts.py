"""Alerts: each with its expression, how long it must hold, and what to tell whoever is woken."""

import json

def increase(metric, which):
    return f"sum by (job) (increase({metric}{{{which}}}[5m]))"


def handshakes(which):
    return increase("plenum_handshakes_total", which)


def commands(which):
    return increase("plenum_commands_total", which) + " + " + increase("plenum_api_requests_total", which)


# Results of handshakes that were refused for another replica to take.
ON_PURPOSE = "draining|connection_limit|rate_limit"
LATENCY = "plenum_delivery_duration_seconds"

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
        "alert": "PlenumLatencyHigh",
        "expr": f"sum by (job) (rate({LATENCY}_sum[5m])) / sum by (job) (rate({LATENCY}_count[5m])) > 0.2",
        "for": "5m",
        "severity": "warning",
        "summary": "Publications take over 200 ms on average",
        "description": "On average {{ $value | humanizeDuration }} pass in {{ $labels.job }} between the log's storing of a "
        "publication and subscribers' queues. Look at CPU, NATS round trips, doubtful shards, and clocks.",
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
