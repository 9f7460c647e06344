"""Messages of a night: a webhook signed as the web half signs its own, an e-mail with the page, and nobody stopped by either failing."""

import base64
import email
import json
import socket
import threading

import pytest

from labeling.actions import webhooks
from tests.training.test_client import serve  # noqa: F401 a fixture
from training import night_report, nightly, notify
from training.config import ConfigError
from training.errors import StageError

SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()


def config(**fields):
    return nightly.Config(rm="tiny_rm.toml", ppo="tiny_ppo.toml", **fields)


def test_a_webhook_carries_the_web_halfs_signature(serve, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HEED_WEBHOOK_SECRET", SECRET)
    taken = serve(lambda *_: (200, {}))
    notify.webhook(f"{taken.url}/hook", message_id="m1", event="night.failed", data={"line": "é"}, at="now")
    ((_method, path, body, headers),) = taken.requests
    seconds = int(headers["webhook-timestamp"])
    assert (path, headers["webhook-id"]) == ("/hook", "m1")
    assert headers["webhook-signature"] == webhooks.signature(SECRET, "m1", seconds, body)
    assert json.loads(body) == {"type": "night.failed", "timestamp": "now", "data": {"line": "é"}}


def test_what_nobody_takes_is_tried_again_and_then_said(serve, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(notify.time, "sleep", lambda _seconds: None)
    monkeypatch.setenv("HEED_WEBHOOK_SECRET", SECRET)
    refused = serve(lambda *_: (500, {}))
    night_report.tell(config(webhook=refused.url), "failed", "night 1: ppo failed")
    assert len(refused.requests) == notify.TRIES and "500" in capsys.readouterr().err
    night_report.tell(config(webhook=refused.url, notify=("promoted",)), "failed", "night 1: ppo failed")
    assert len(refused.requests) == notify.TRIES, "not configured"
    for secret in ("", "whsec_", "whsec_?"):
        monkeypatch.setenv("HEED_WEBHOOK_SECRET", secret)
        with pytest.raises(StageError, match="HEED_WEBHOOK_SECRET"):
            notify.webhook(refused.url, message_id="m", event="e", data={}, at="now")


def test_an_e_mail_holds_the_page(monkeypatch, tmp_path, capsys):
    page = tmp_path / "report.html"
    page.write_text("<p>Night 7</p>")
    with MailServer() as server:
        monkeypatch.setenv("SMTP_URL", f"smtp://127.0.0.1:{server.port}")
        notify.mail(
            to=["a@x.example", "b@x.example"], sender="heed@x.example", subject="night 7: promoted", text="It serves.\n",
            attachment=page, message_id="m1",
        )  # fmt: skip
    message = email.message_from_string(server.message)
    assert (message["Subject"], message["To"]) == ("night 7: promoted", "a@x.example, b@x.example")
    text, attached = message.get_payload()
    assert text.get_payload(decode=True) == b"It serves.\n"
    assert (attached.get_filename(), attached.get_payload(decode=True)) == ("report.html", b"<p>Night 7</p>\n")
    monkeypatch.setenv("SMTP_URL", "")
    night_report.tell(config(mail_to=("a@x.example",)), "failed", "it failed")
    assert "SMTP_URL is not set" in capsys.readouterr().err
    monkeypatch.setenv("SMTP_URL", "smtp://mail.example.org:abc")
    night_report.tell(config(mail_to=("a@x.example",)), "failed", "it failed")
    night_report.tell(config(mail_to=("a@x.example",), mail_from="a\nb@x.example"), "failed", "it failed")
    assert capsys.readouterr().err.count("not told") == 2


def test_a_run_that_cannot_begin_is_told(serve, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("HEED_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("HEED_TOKEN", "expired")
    web = serve(lambda *_: (401, {}))
    monkeypatch.setenv("HEED_URL", web.url)
    taken = serve(lambda *_: (200, {}))
    fields = {"webhook": taken.url, "out": str(tmp_path), "launch": ("x",), "stage": ("x",)}
    with pytest.raises(StageError, match="401"):
        nightly.run(config(**fields))
    with pytest.raises(ConfigError, match="own_evaluation"):
        nightly.run(config(own_evaluation=("no-such-command",), **fields))
    lines = [json.loads(body)["data"]["line"] for _method, _path, body, _headers in taken.requests]
    assert ["401" in lines[0], "no-such-command" in lines[1], len(lines)] == [True, True, 2]


class MailServer:
    """Takes one message by SMTP."""

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.thread.join(10)
        self.socket.close()

    def _serve(self):
        connection, _address = self.socket.accept()
        with connection, connection.makefile("rw", newline="\r\n", encoding="utf-8") as file:

            def say(line):
                file.write(line + "\n")
                file.flush()

            say("220 here")
            for line in file:
                word = line.split()[0].upper()
                if word == "DATA":
                    say("354 go on")
                    self.message = self._body(file)
                    say("250 taken")
                elif word == "QUIT":
                    say("221 bye")
                    return
                else:
                    say("250 fine")

    @staticmethod
    def _body(file):
        lines = []
        for line in file:
            if line.strip("\r\n") == ".":
                break
            lines.append(line.replace("\r\n", "\n"))
        return "".join(lines)
