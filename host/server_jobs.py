"""Queue and history as one list of jobs, which newer frontends ask for."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from .server_json import BadRequest, body_of, integer, respond
from .server_queue import PromptQueue

STATES = ("pending", "in_progress", "completed", "failed", "cancelled")
SORTS = ("created_at", "execution_duration")
ENDS = {"execution_success": "completed", "execution_error": "failed", "execution_interrupted": "cancelled"}


def add_routes(routes: web.RouteTableDef, queue: PromptQueue) -> None:
    """Adds /jobs, /jobs/{id} and cancelling."""

    @routes.get("/jobs")
    async def jobs(request: web.Request) -> web.Response:
        wanted = [s.strip().lower() for s in request.query.get("status", "").split(",") if s.strip()]
        sort_by, order = request.query.get("sort_by", SORTS[0]).lower(), request.query.get("sort_order", "desc").lower()
        for name, value, choices in (("status", wanted, STATES), ("sort_by", [sort_by], SORTS),
                                     ("sort_order", [order], ("asc", "desc"))):
            unknown = [v for v in value if v not in choices]
            if unknown:
                return respond({"error": f"{name} is {unknown[0]!r}, expected one of {', '.join(choices)}"}, 400)
        try:
            limit, offset = integer(request, "limit", None, 1), integer(request, "offset", 0, -2**31) or 0
        except BadRequest as error:
            return respond({"error": error.text}, 400)
        offset = max(offset, 0)
        found = [
            job for job in _all(queue)
            if (not wanted or job["status"] in wanted) and request.query.get("workflow_id") in (None, job.get("workflow_id"))
        ]
        found.sort(key=_duration if sort_by == "execution_duration" else _created, reverse=order == "desc")
        page = found[offset: None if limit is None else offset + limit]
        return respond({
            "jobs": page,
            "pagination": {
                "offset": offset, "limit": len(found) if limit is None else limit, "total": len(found),
                "has_more": offset + len(page) < len(found),
            },
        })

    @routes.get("/jobs/{job_id}")
    async def job(request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        entry = queue.history(job_id).get(job_id)
        if entry is not None:
            _, _, prompt, extra, _ = entry["prompt"]
            return respond({
                **_done(job_id, entry), "outputs": entry["outputs"], "execution_status": entry["status"],
                "workflow": {"prompt": prompt, "extra_data": extra},
            })
        for found in _all(queue):
            if found["id"] == job_id:
                return respond(found)
        return respond({"error": "Job not found"}, 404)

    @routes.post("/jobs/cancel")
    async def cancel_several(request: web.Request) -> web.Response:
        ids = (await body_of(request)).get("job_ids")
        if not isinstance(ids, list):
            raise BadRequest("job_ids is missing, expected a list")
        return respond({"cancelled": [i for i in map(str, ids) if _cancel(queue, i)]})

    @routes.post("/jobs/{job_id}/cancel")
    async def cancel(request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        done = _cancel(queue, job_id)
        if not done and not queue.history(job_id):
            return respond({"error": "Job not found"}, 404)
        return respond({"cancelled": done})


def _cancel(queue: PromptQueue, job_id: str) -> bool:
    waiting = any(row[1] == job_id for row in queue.rows()[1])
    if waiting:
        queue.remove([job_id])
    return queue.interrupt(job_id) or waiting


def _all(queue: PromptQueue) -> list[dict[str, Any]]:
    running, waiting = queue.rows()
    jobs = [_queued(row, "in_progress") for row in running] + [_queued(row, "pending") for row in waiting]
    known = {job["id"] for job in jobs}
    return jobs + [_done(i, entry) for i, entry in queue.history().items() if i not in known]


def _queued(row: list[Any], status: str) -> dict[str, Any]:
    return {"id": row[1], "status": status, "priority": row[0], "outputs_count": 0, **_facts(row[3])}


def _facts(extra: dict[str, Any]) -> dict[str, Any]:
    """Creation time, and the workflow's id if it has one."""
    pnginfo = extra.get("extra_pnginfo")
    workflow = pnginfo.get("workflow") if isinstance(pnginfo, dict) else None
    identity = workflow.get("id") if isinstance(workflow, dict) else None
    return {"create_time": extra.get("create_time"), **({} if identity is None else {"workflow_id": identity})}


def _done(job_id: str, entry: dict[str, Any]) -> dict[str, Any]:
    number, _, _, extra, _ = entry["prompt"]
    job = {"id": job_id, "status": "failed", "priority": number, **_facts(extra)}
    for event, data in entry["status"]["messages"]:
        if event == "execution_start":
            job["execution_start_time"] = data.get("timestamp")
        elif event in ENDS:
            job.update(status=ENDS[event], execution_end_time=data.get("timestamp"))
            if event == "execution_error":
                job["execution_error"] = data
    shown = [
        {**item, "nodeId": node, "mediaType": media}
        for node, output in entry["outputs"].items() for media, items in output.items()
        for item in items if isinstance(item, dict)
    ]
    pictures = sorted((s for s in shown if s["mediaType"] == "images"), key=lambda s: s.get("type") != "output")
    return {**job, "outputs_count": len(shown), **({"preview_output": pictures[0]} if pictures else {})}


def _created(job: dict[str, Any]) -> float:
    return job.get("create_time") or 0


def _duration(job: dict[str, Any]) -> float:
    start, end = job.get("execution_start_time"), job.get("execution_end_time")
    return end - start if start and end else 0
