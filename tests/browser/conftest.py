"""Sittings at the real frontend in a real browser, against ``fewstep serve`` and, where COMFYUI_PATH is set, a real ComfyUI.

Needs chromium, node with playwright-core (FEWSTEP_PLAYWRIGHT names its folder if node does not find it) and the frontend's
wheel. FEWSTEP_FRONTEND names a folder with another version of the frontend to test as well; FEWSTEP_SHOTS a folder that keeps
pictures to look at.
"""

import contextlib
import os
import re

import comfyui_server
import fewstep
import pytest
from chrome import FRONTENDS, OPTIONAL, ROOT, errors, serving, sitting

SERVERS = {"embedded": FRONTENDS[0], **({"given": FRONTENDS[1]} if len(FRONTENDS) > 1 else {})}
SITTINGS = [(server, vue, theme) for server in (*SERVERS, *(["comfyui"] if os.environ.get("COMFYUI_PATH") else []))
            for vue, theme in ((False, "light"), (True, "dark"))]


@contextlib.contextmanager
def started(server, folder):
    """The address of a server, and the pack's name there."""
    if server == "comfyui":
        with comfyui_server.running(folder) as comfyui:
            yield comfyui.url, "few-step.pack"
    else:
        with serving(ROOT, folder, SERVERS[server]) as url:
            yield url, "fewstep"


@pytest.fixture(scope="session", params=SITTINGS, ids=lambda p: f"{p[0]}-{'vue' if p[1] else 'canvas'}-{p[2]}")
def seen(request, tmp_path_factory):
    """What one sitting showed; "faults" are the page's errors, "refusals" the server's: in ComfyUI those of the pack alone."""
    server, vue, theme = request.param
    folder = tmp_path_factory.mktemp("sitting")
    with started(server, folder) as (url, pack):
        found = sitting(folder, name=f"{server}-{'vue' if vue else 'canvas'}-{theme}", url=url, pack=pack, vue=vue, theme=theme,
                        parts=["plans", "graph"], template="inpainting", nodes=fewstep.NODE_DISPLAY_NAME_MAPPINGS)
    of_pack = re.compile("few.?step" if server == "comfyui" else "")
    found["faults"] = [entry for entry in errors(found) if of_pack.search(str(entry))]
    found["refusals"] = [entry for entry in found["failed"] if of_pack.search(entry[1]) and not OPTIONAL.search(entry[1])]
    return found
