"""Export and erasure of accounts by the native API."""

import io
import json
import zipfile

from tests.waiting import DEADLINE

JOB = {"request": {"prompt": "a zebra", "steps": 2, "width": 64, "height": 64}}


def drawn(served, key):
    answer = served.client.post("/api/v1/jobs", json=JOB, headers={**key, "prefer": f"wait={DEADLINE}"})
    assert answer.status_code == 200
    return answer.json()


def test_an_account_gets_everything_that_is_kept_of_it(served):
    mine, other = served.key("anna"), served.key("bert")
    made = drawn(served, mine)
    drawn(served, other)
    answer = served.client.get("/api/v1/accounts/anna/export", headers=mine)
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="limner-anna.zip"'
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    image = made["jobs"][0]["image"]["id"]
    file = served.client.get(f"/api/v1/images/{image}/file", headers=mine).content
    assert archive.read(f"images/{image}.png") == file
    rows = [json.loads(line) for line in archive.read("sets.jsonl").splitlines()]
    assert [row["id"] for row in rows] == [made["id"]]
    assert served.client.get("/api/v1/accounts/bert/export", headers=mine).status_code == 404
    assert served.client.get("/api/v1/accounts/nobody/export", headers=mine).status_code == 404


def test_an_erased_account_is_gone_with_its_key(served):
    mine, other = served.key("carl"), served.key("dora")
    made, kept = drawn(served, mine), drawn(served, other)
    image = made["jobs"][0]["image"]["id"]
    key = served.state.ledger.get_image(image).key
    assert served.client.delete("/api/v1/accounts/dora", headers=mine).status_code == 404
    assert served.client.delete("/api/v1/accounts/carl", headers=mine).status_code == 204
    assert served.client.get("/api/v1/sets", headers=mine).status_code == 401
    assert key not in {one.key for one in served.state.store.masters()}
    assert served.client.get(f"/api/v1/sets/{kept['id']}", headers=other).status_code == 200
    assert served.client.delete("/api/v1/accounts/carl", headers=other).status_code == 404


def test_operators_erase_any_account_but_that_of_the_service(served):
    served.key("emil")
    operator = served.key("root", scopes=("manage", "read"))
    served.state.ledger.update_account("root", role="operator")
    assert served.client.delete("/api/v1/accounts/emil", headers=operator).status_code == 204
    assert served.client.delete("/api/v1/accounts/local", headers=operator).status_code == 409
    reader = served.key("fred", scopes=("read",))
    assert served.client.delete("/api/v1/accounts/fred", headers=reader).status_code == 403
