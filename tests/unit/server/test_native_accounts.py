"""The native API: accounts, keys, quotas, usage, and whose objects a caller sees."""

from limner.service.identity import Principal, Quotas
from tests.serving import png, serving, submit


def test_another_accounts_objects_do_not_exist(tmp_path):
    with serving(tmp_path) as served:
        alice, bob = served.key("alice"), served.key("bob")
        assert served.client.get("/api/v1/jobs").status_code == 401
        done = submit(served.client, headers=alice)
        job = done["jobs"][0]
        for path in (
            f"/api/v1/sets/{done['id']}",
            f"/api/v1/jobs/{job['id']}",
            f"/api/v1/jobs/{job['id']}/attempts",
            f"/api/v1/images/{job['image']['id']}",
            job["image"]["url"],
            job["image"]["thumbnail_url"],
        ):
            assert served.client.get(path, headers=alice).status_code == 200, path
            theirs, none = served.client.get(path, headers=bob), served.client.get(path + "x", headers=bob)
            assert theirs.status_code == none.status_code == 404, path
        assert served.client.delete(f"/api/v1/images/{job['image']['id']}", headers=bob).status_code == 404
        upload = served.client.post("/api/v1/uploads", content=png(), headers=alice).json()["reference"]
        stolen = {"request": {"prompt": "x", "image": upload}}
        assert served.client.post("/api/v1/jobs", json=stolen, headers=bob).status_code == 422
        assert served.client.get(f"/api/v1/uploads/{upload}", headers=bob).status_code == 404
        for path in (f"/api/v1/sets/{done['id']}/cancel", f"/api/v1/jobs/{job['id']}/retry"):
            assert served.client.post(path, headers=bob).status_code == 404
        assert served.client.get("/api/v1/jobs", headers=bob).json()["items"] == []
        assert served.client.get("/api/v1/jobs?account=alice", headers=bob).status_code == 404


def test_usage_is_counted_once_and_summed(tmp_path):
    with serving(tmp_path) as served:
        alice, bob = served.key("alice"), served.key("bob")
        submit(served.client, headers=alice, num_images=2)
        submit(served.client, headers=bob)
        [own] = served.client.get("/api/v1/usage", headers=alice).json()
        assert (own["images"], own["jobs"]) == (2, 2)
        by = served.client.get("/api/v1/usage", params={"by": ["model", "day"]}, headers=alice).json()
        assert [(one["model"], one["images"]) for one in by] == [("checkpoint:picturebook", 2)]
        assert served.client.get("/api/v1/usage?by=model,day", headers=alice).json() == by
        assert served.client.get("/api/v1/usage?account=bob", headers=alice).status_code == 404
        assert served.client.get("/api/v1/usage?by=colour", headers=alice).status_code == 422
        caller = served.client.get("/api/v1/account", headers=alice).json()
        assert (caller["id"], caller["role"], caller["used"]["images_per_day"]) == ("alice", "user", 2)


def test_a_key_made_by_a_user_can_do_no_more_than_his_own(tmp_path):
    with serving(tmp_path, limits={"max_steps": 50}) as served:
        alice = served.key("alice", policy={"max_steps": 20}, expires_in=1000)
        make = lambda **body: served.client.post("/api/v1/keys", json=body, headers=alice)  # noqa: E731
        made = make(name="ci", scopes=["generate"], policy={"max_steps": 10}).json()
        assert made["policy"] == {"max_steps": 10}
        assert made["expires_at"] <= served.state.ledger.now() + 1000
        new = {"authorization": f"Bearer {made['secret']}"}
        body = {"request": {"prompt": "x", "steps": 11}}
        assert served.client.post("/api/v1/jobs", json=body, headers=new).status_code == 422
        assert make().json()["policy"] == {"max_steps": 20}, "the limits of the caller's key stay"
        assert make(policy={"max_steps": 21}).status_code == 403
        assert make(account="bob").status_code == 404
        weak = served.key("alice", scopes=("manage",))
        assert served.client.post("/api/v1/keys", json={}, headers=weak).status_code == 403
        listed = served.client.get("/api/v1/keys", headers=alice).json()
        assert "secret" not in listed[0]
        assert served.client.delete(f"/api/v1/keys/{made['id']}", headers=alice).status_code == 204
        assert served.client.post("/api/v1/jobs", json=body, headers=new).status_code == 401
        assert (
            served.client.delete(f"/api/v1/keys/{made['id']}", headers=served.key("bob")).status_code == 404
        )


def test_a_key_is_never_wider_than_its_account(tmp_path):
    with serving(tmp_path, working=False) as served:
        mine = served.key("alice", policy={"max_steps": 40, "max_images": 2})
        limits = lambda: served.client.get("/api/v1/account", headers=mine).json()["limits"]  # noqa: E731
        assert (limits()["max_steps"], limits()["max_images"]) == (40, 2)
        served.ledger.update_account("alice", policy={"max_steps": 10, "max_images": 4})
        assert (limits()["max_steps"], limits()["max_images"]) == (10, 2)


def test_operators_manage_accounts(tmp_path):
    with serving(tmp_path) as served:
        quotas = {"images_per_day": 1}
        made = served.client.post("/api/v1/accounts", json={"id": "carol", "quotas": quotas})
        assert (made.status_code, made.json()["quotas"]["images_per_day"]) == (201, 1)
        secret = served.client.post("/api/v1/keys", json={"account": "carol"}).json()["secret"]
        carol = {"authorization": f"Bearer {secret}"}
        submit(served.client, headers=carol)
        refused = served.client.post("/api/v1/jobs", json={"request": {"prompt": "x"}}, headers=carol)
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
        assert int(refused.headers["retry-after"]) > 80_000
        assert served.client.get("/api/v1/accounts", headers=carol).status_code == 403
        served.state.ledger.create_account("root", role="operator")
        root = served.key("root")
        assert served.client.get("/api/v1/jobs?account=carol", headers=root).json()["items"]
        lock = served.client.patch("/api/v1/accounts/carol", json={"disabled": True}, headers=root)
        assert lock.json()["disabled"]
        assert served.client.get("/api/v1/jobs", headers=carol).status_code == 401
        own = served.client.patch("/api/v1/accounts/root", json={"disabled": True}, headers=root)
        assert own.status_code == 422


def test_the_quotas_of_the_settings_are_those_of_accounts_without_any(tmp_path):
    with serving(tmp_path, working=False, quotas={"queued_jobs": 1}) as served:
        body = {"request": {"prompt": "x"}}
        assert served.client.post("/api/v1/jobs", json=body).status_code == 202
        assert served.client.post("/api/v1/jobs", json=body).json()["code"] == "quota_exceeded"


def test_what_is_refused_for_its_quota_is_not_kept(tmp_path):
    with serving(tmp_path, working=False, quotas={}) as served:
        mine = served.key("carol")
        served.state.ledger.update_account("carol", quotas=Quotas(stored_bytes=10))
        refused = served.client.post("/api/v1/uploads", content=png(), headers=mine)
        assert refused.json()["code"] == "quota_exceeded"
        assert not [one for one in (tmp_path / "uploads").rglob("*") if one.is_file()]


def test_a_stream_of_events_ends_when_its_key_is_revoked(tmp_path, monkeypatch):
    monkeypatch.setattr("limner.server.native.events.HEARTBEAT_SECONDS", 0.05)
    with serving(tmp_path, working=False) as served:
        mine, ledger = served.key("gina"), served.state.ledger
        with served.client.stream("GET", "/api/v1/events", headers=mine) as stream:
            lines = stream.iter_lines()
            assert ": " in lines  # it goes on
            [key] = ledger.list_keys("gina")
            ledger.revoke_key(key.id)
            assert list(lines)[-1] == ""  # and is at its end
        assert ledger.is_valid(Principal(ledger.get_account("gina")))
        ledger.update_account("gina", disabled=True)
        assert not ledger.is_valid(Principal(ledger.get_account("gina")))


def test_webhooks_go_to_allowed_hosts_only(served, tmp_path):
    body = {"request": {"prompt": "x"}, "webhook": {"url": "http://hooks.example/x"}}
    refused = served.client.post("/api/v1/jobs", json=body)
    assert (refused.status_code, refused.json()["fields"]) == (422, ["webhook"])
    with serving(tmp_path, working=False, webhook_hosts=("hooks.example",)) as other:
        assert other.client.post("/api/v1/jobs", json=body).status_code == 202
