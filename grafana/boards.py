"""Dashboards: rows of panels, each panel one question with its queries.

$job chooses the scrape job, $instance the replicas; both are of what the data source knows.
"""

import alerts

SELECT = 'job=~"$job",instance=~"$instance"'
WINDOW = "$__rate_interval"
FAILED = ',code!="0"'


def rate(metric, more=""):
    return f"rate({metric}{{{SELECT}{more}}}[{WINDOW}])"


def quantile(share, metric, by=""):
    labels = "le, " + by if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) ({rate(metric + '_bucket')}))"


def query(expression, legend):
    return (expression, legend)


def panel(title, unit, queries, about="", kind="timeseries", thresholds=None, stack=False):
    return {
        "title": title, "unit": unit, "queries": queries, "about": about, "kind": kind, "thresholds": thresholds or [],
        "stack": stack,
    }


def overview():
    latency, append = alerts.DELIVERY, alerts.APPEND
    handshakes = alerts.handshakes(f'{SELECT},result="accepted"', by="")
    all_handshakes = alerts.handshakes(f'{SELECT},result!~"{alerts.ON_PURPOSE}"', by="")
    return [
        ("Now", [
            panel("Connections", "short", [query(f"sum(plenum_connections{{{SELECT}}})", "")], "Open client connections.", "stat"),
            panel("Replicas", "short", [query(f"count(plenum_build_info{{{SELECT}}})", "")], "Processes that answer.", "stat"),
            panel("Connect success", "percentunit", [query(f"{handshakes} / {all_handshakes}", "")],
                  "Handshakes of the last 5 minutes that became connections, without those refused for another replica to take.", "stat", [(0, "red"), (0.95, "green")]),
            panel("Deliveries", "ops", [query(f"sum({rate('plenum_publications_delivered_total')})", "")],
                  "Publications queued for subscribers.", "stat"),
            panel("Delivery p99", "s", [query(quantile(0.99, latency), "")],
                  "From the log's storing to subscribers' queues.", "stat", [(0, "green"), (0.2, "red")]),
            panel("Doubtful shards", "short", [query(f"sum(plenum_nats_doubtful_shards{{{SELECT}}})", "")],
                  "Shards of the log without a sign of life for 3 s, over all replicas.", "stat", [(0, "green"), (1, "red")]),
        ]),
        ("Clients", [
            panel("Connections by replica", "short", [query(f"sum by (instance) (plenum_connections{{{SELECT}}})", "{{instance}}")],
                  stack=True),
            panel("Handshakes by result", "ops", [query(f"sum by (result) ({rate('plenum_handshakes_total')})", "{{result}}")],
                  "All but accepted are refusals: draining, limits, origins, bad requests."),
            panel("Ended connections by code", "ops", [query(f"sum by (code) ({rate('plenum_disconnects_total')})", "{{code}}")],
                  "3001 is a drain, 3008 a reader that was too slow, 3012 a missing pong."),
            panel("Recoveries", "ops", [query(f"sum by (result) ({rate('plenum_recoveries_total')})", "{{result}}")],
                  "What clients that came back were told: everything they missed, or that it cannot be proven."),
            panel("Reconnects", "ops", [query(f"sum({rate('plenum_resumes_total')})", "with a resume token"),
                                        query(f"sum({rate('plenum_recoveries_total')})", "subscriptions recovered")]),
            panel("Drain", "short", [query(f"sum by (instance) (plenum_draining_connections{{{SELECT}}})", "{{instance}}")],
                  "Connections still to move while a replica drains."),
        ]),
        ("Messages", [
            panel("Publications and deliveries", "ops", [
                query(f"sum({rate('plenum_publications_received_total')})", "publications from the log"),
                query(f"sum({rate('plenum_publications_delivered_total')})", "deliveries")]),
            panel("Delivery latency", "s", [query(quantile(share, latency), f"p{share * 100:.0f}") for share in (0.5, 0.95, 0.99)],
                  "From the log's storing to subscribers' queues; the log's clock has milliseconds."),
            panel("Append latency", "s", [query(quantile(share, append), f"p{share * 100:.0f}") for share in (0.5, 0.95, 0.99)],
                  "From a publish to the log's acknowledgement."),
            panel("Publish to queue, average", "s", [query(alerts.publish_to_queue(SELECT, WINDOW, ""), "")],
                  "Append and delivery together: what PlenumLatencyHigh looks at."),
            panel("Deliveries per write", "short", [
                query(f"sum({rate('plenum_publications_delivered_total')}) / sum({rate('plenum_socket_writes_total')})", "")],
                "How well writes are coalesced: each write is a system call."),
            panel("Bytes", "Bps", [query(f"sum({rate('plenum_received_bytes_total')})", "from clients"),
                                   query(f"sum({rate('plenum_sent_bytes_total')})", "to clients")]),
            panel("API calls", "ops", [query(f"sum by (method) ({rate('plenum_api_requests_total')})", "{{method}}")]),
        ]),
        ("Errors", [
            panel("Failed commands", "ops", [
                query(f"sum by (method, code) ({rate('plenum_commands_total', FAILED)})", "{{method}} {{code}}")]),
            panel("Failed API calls", "ops", [
                query(f"sum by (method, code) ({rate('plenum_api_requests_total', FAILED)})", "{{method}} {{code}}")]),
            panel("Appends not acknowledged", "ops", [
                query(f"sum by (reason) ({rate('plenum_log_append_failures_total')})", "{{reason}}")]),
            panel("Slow readers and missed pongs", "ops", [
                query(f"sum({rate('plenum_outbox_overflows_total')})", "closed because too much waited"),
                query(f"sum({rate('plenum_missed_pongs_total')})", "missed pongs")]),
        ]),
        ("NATS and Redis", [
            panel("NATS connections", "short", [
                query(f"sum by (instance) (plenum_nats_connection_up{{{SELECT}}})", "{{instance}}")], "Of each replica's pool."),
            panel("NATS round trip", "s", [
                query(f"max by (instance) (plenum_nats_connection_round_trip_seconds{{{SELECT}}})", "{{instance}}")]),
            panel("Doubtful shards by replica", "short", [
                query(f"sum by (instance) (plenum_nats_doubtful_shards{{{SELECT}}})", "{{instance}}")]),
            panel("Redis calls", "ops", [
                query(f"sum by (purpose, result) ({rate('plenum_redis_calls_total')})", "{{purpose}} {{result}}")]),
            panel("Redis latency p99", "s", [query(quantile(0.99, "plenum_redis_call_duration_seconds", "purpose"), "{{purpose}}")]),
            panel("Redis slots covered", "short", [query(f"min by (instance) (plenum_redis_slots{{{SELECT}}})", "{{instance}}")],
                  "16384 when every slot has a primary."),
        ]),
        ("Processes", [
            panel("CPU", "short", [query(f"{rate('process_cpu_seconds_total')}", "{{instance}}")], "Cores in use."),
            panel("Memory", "bytes", [query(f"process_resident_memory_bytes{{{SELECT}}}", "{{instance}}"),
                                      query(f"max(plenum_memory_limit_bytes{{{SELECT}}})", "limit")]),
            panel("Open files", "short", [query(f"process_open_fds{{{SELECT}}}", "{{instance}}"),
                                          query(f"min(process_max_fds{{{SELECT}}})", "limit")]),
        ]),
    ]


def render(title, uid, rows):
    panels, y, number = [], 0, 0
    source = {"type": "prometheus", "uid": "${datasource}"}
    for row, members in rows:
        number += 1
        panels.append({"id": number, "type": "row", "title": row, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        across = 6 if all(member["kind"] == "stat" for member in members) else 3
        width, height = 24 // across, 4 if across == 6 else 8
        for index, member in enumerate(members):
            number += 1
            steps = [{"value": None if value == 0 else value, "color": color} for value, color in member["thresholds"]]
            defaults = {"unit": member["unit"], "min": 0,
                        "thresholds": {"mode": "absolute", "steps": steps or [{"value": None, "color": "green"}]}}
            if member["kind"] == "timeseries":
                defaults["custom"] = {"fillOpacity": 10, "showPoints": "never",
                                      "stacking": {"mode": "normal" if member["stack"] else "none"}}
                options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
            else:
                options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
            panels.append({
                "id": number, "type": member["kind"], "title": member["title"], "description": member["about"],
                "datasource": source,
                "gridPos": {"x": index % across * width, "y": y + index // across * height, "w": width, "h": height},
                "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options,
                "targets": [{"refId": chr(ord("A") + n), "datasource": source, "expr": expression,
                             "legendFormat": legend or "__auto"} for n, (expression, legend) in enumerate(member["queries"])],
            })
        y += (len(members) + across - 1) // across * height
    choice = {"type": "query", "datasource": source, "includeAll": True, "multi": True, "allValue": ".*", "refresh": 2,
              "current": {"text": "All", "value": "$__all"}}
    return {
        "uid": uid, "title": title, "tags": ["plenum"], "schemaVersion": 39, "editable": True, "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"}, "timezone": "", "graphTooltip": 1,
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}},
            {**choice, "name": "job", "label": "Job", "query": {"query": "label_values(plenum_build_info, job)", "refId": "job"}},
            {**choice, "name": "instance", "label": "Replica",
             "query": {"query": 'label_values(plenum_build_info{job=~"$job"}, instance)', "refId": "instance"}},
        ]},
        "annotations": {"list": []}, "links": [], "panels": panels,
    }


BOARDS = {"overview": render("Plenum: Overview", "plenum-overview", overview())}
