"""What both servers refuse: paths that leave their folder, other sites' pages, bodies that are no prompt."""

import http.client
import urllib.parse

import pytest


def status(server, path, method="GET", body=None, **headers):
    """The status of a request that is sent as it is written."""
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in {**headers, "Content-Length": str(len(body or b""))}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


PASSWD = "../" * 12 + "etc/passwd"
PATHS = [
    f"/view?filename={PASSWD}", f"/view?filename=passwd&subfolder={'../' * 12}etc", "/view?filename=/etc/passwd", "/view?filename=",
    f"/api/view?filename={urllib.parse.quote(PASSWD, safe='')}", f"/userdata/{urllib.parse.quote(PASSWD, safe='')}",
    f"/extensions/few-step.pack/{PASSWD}", f"/extensions/fewstep/{PASSWD}", f"/{PASSWD}", f"/extensions/fewstep/{PASSWD.replace('/', '%2f')}",
    f"/workflow_templates/fewstep/{PASSWD}", "/view?filename=nothing.png", "/view?filename=x.png&type=secret",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_stay_in_their_folder(either, path):
    code, data = status(either, path)
    assert 400 <= code < 500 and b"root:" not in data


def upload(server, name):
    body = (b'--end\r\nContent-Disposition: form-data; name="image"; filename="' + name.encode() + b'"\r\n'
            b"Content-Type: image/png\r\n\r\npng\r\n--end--\r\n")
    return status(server, "/upload/image", "POST", body, Content_Type="multipart/form-data; boundary=end")[0]


@pytest.mark.parametrize("name", ["../up.png", "../../up.png", "a/../../up.png"])
def test_uploads_stay_in_their_folder(either, name):
    assert 400 <= upload(either, name) < 500


def test_an_upload_with_a_whole_path_goes_nowhere_else(either, tmp_path):
    upload(either, f"{tmp_path}/up.png")
    assert not list(tmp_path.iterdir())


ORIGINS = {  # Origin: whether it is the page's own
    "http://evil.example": False, "http://127.0.0.1:1": False, "http://localhost.evil.example": False, "null": None, "same": True,
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_pages_of_other_sites_queue_nothing(either, origin):
    given = either.url if origin == "same" else origin
    code, _ = status(either, "/prompt", "POST", b"{}", Origin=given, Content_Type="application/json")
    if ORIGINS[origin] is None:  # a page without a site: ComfyUI lets it pass, the embedded host does not
        assert code in (400, 403)
    else:
        assert code == (400 if ORIGINS[origin] else 403)


@pytest.mark.parametrize("body", [b"", b"{}", b"not json", b"[1]", b"[" * 100_000, b'{"prompt": null}', b'{"prompt": []}', b'{"prompt": 3}'])
def test_what_is_no_prompt_is_refused(either, body):
    before = either.json("/queue")
    code, _ = status(either, "/prompt", "POST", body, Content_Type="application/json")
    assert code in (400, 500)
    assert either.json("/queue") == before
