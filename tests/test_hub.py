"""Hub names, against a server of our own on loopback: what is asked for, what is cached, and what goes wrong."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from spin_native.checkpoints import Location
from spin_native.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ERRORS = {"gone": (401, "RepoNotFound"), "gated": (403, "GatedRepo")}


@pytest.fixture
def hub(tiny_model, tmp_path):
    """A server that holds some/model, some/sharded; its address, the files that were asked for, and those it holds."""
    files = {f"some/model/{p.name}": p.read_bytes() for p in Path(tiny_model).iterdir()}
    tensors = load_file(Path(tiny_model) / "model.safetensors")
    shard_of = {
        name: next((f"layer{n}.safetensors" for n in range(3) if f".{n}." in name), "rest.safetensors") for name in tensors
    }
    for shard in set(shard_of.values()):
        save_file({name: tensors[name] for name in tensors if shard_of[name] == shard}, tmp_path / shard)
        files[f"some/sharded/{shard}"] = (tmp_path / shard).read_bytes()
    files["some/sharded/model.safetensors.index.json"] = json.dumps({"weight_map": shard_of}).encode()
    for name in ("config.json", "vocab.txt"):
        files[f"some/sharded/{name}"] = files[f"some/model/{name}"]
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            repo, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            content, status, code = files.get(f"{repo}/{name}"), 200, None
            if repo.split("/")[-1] in ERRORS:
                status, code = ERRORS[repo.split("/")[-1]]
            elif revision not in ("main", "v2", COMMIT):
                status, code = 404, "RevisionNotFound"
            elif content is None:
                status, code = 404, "EntryNotFound"
            body = content if status == 200 else b""
            asked.append((self.command, revision, name, status))
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{abs(hash(body)):x}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            address = f"http://{self.headers['Host']}"
            answer = {"url": f"{address}/me/clf"}
            if "/preupload/" in self.path:
                answer = {"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]}
            elif "/commit/" in self.path:
                answer = {"success": True, "commitOid": COMMIT, "commitUrl": f"{address}/me/clf/commit/{COMMIT}"}
                lines = [json.loads(line) for line in body.splitlines()]
                uploaded = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
                files.update({f"me/clf/{name}": base64.b64decode(content) for name, content in uploaded.items()})
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked, files
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(hub, tmp_path):
    """Run Python with that Hub and an empty cache of its own; what it prints."""

    def run(program, **environment):
        settings = {"HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", **environment}
        code = "import spin_native as sn\ntry:\n" + "".join(f"    {line}\n" for line in program.splitlines())
        code += "except sn.InputError as error:\n    print('InputError:', error)\n"
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


LOAD = "m = sn.load_model('{}', depth={})\nprint(m.depth, m.source.revision, sn.load_tokenizer('{}').n_vocab)"


def test_a_hub_name_loads_from_one_commit_and_then_offline(ask, hub, fitted):
    program = LOAD.format("some/model", None, "some/model")
    assert ask(program) == f"3 {COMMIT} {fitted._deployed.extractor.tokenizer.n_vocab}"
    fetched = {name for command, _, name, status in hub[1] if command == "GET" and status == 200}
    assert fetched == {"config.json", "model.safetensors", "vocab.txt"}
    hub[1].clear()
    assert ask(program, HF_HUB_OFFLINE="1") == f"3 {COMMIT} {fitted._deployed.extractor.tokenizer.n_vocab}"
    assert hub[1] == []


def test_only_the_shards_of_the_depth_are_downloaded_and_they_load_offline(ask, hub):
    program = LOAD.format("some/sharded", 1, "some/sharded")
    shown = ask(program)
    assert shown.startswith("1 ")
    fetched = {name for command, _, name, status in hub[1] if command == "GET" and status == 200}
    assert {name for name in fetched if name.endswith(".safetensors")} == {"layer0.safetensors", "rest.safetensors"}
    assert ask(program, HF_HUB_OFFLINE="1") == shown
    assert "layer1.safetensors is not in the local cache" in ask("sn.load_model('some/sharded')", HF_HUB_OFFLINE="1")


def test_a_revision_is_honoured(ask, hub):
    assert ask("print(sn.load_model('some/model', revision='v2').depth)") == "3"
    revisions = [revision for _, revision, name, _ in hub[1] if name]
    assert revisions[0] == "v2"
    assert set(revisions) <= {"v2", COMMIT}


def test_a_cache_below_a_folder_called_snapshots_gives_the_same_commit(ask, tmp_path):
    program = LOAD.format("some/model", 1, "some/model")
    home = {"HF_HOME": str(tmp_path / "snapshots" / "of-monday")}
    shown = ask(program, **home)
    assert shown.split()[1] == COMMIT
    assert ask(program, HF_HUB_OFFLINE="1", **home) == shown


@pytest.mark.parametrize("revision", ["../../main", "/etc", 3])
def test_a_revision_that_leads_out_of_the_cache_is_refused(revision, unchecked):
    with pytest.raises(InputError, match="expected a branch, tag or commit"):
        Location("some/model", revision)


@pytest.mark.parametrize(
    ("name", "options", "environment", "message"),
    [
        ("some/gone", "", {}, "no such repository on the Hub (or it is private: log in)"),
        ("some/gated", "", {}, "access is restricted; ask for it on the Hub and log in"),
        ("some/model", ", revision='v9'", {}, "has no revision 'v9'"),
        ("not a name", "", {}, "neither a folder nor a valid Hub name"),
        ("some/model", "", {"HF_HUB_OFFLINE": "1"}, "config.json is not in the local cache, and the Hub cannot be reached"),
    ],
)
def test_what_goes_wrong_is_one_sentence(ask, name, options, environment, message):
    shown = ask(f"sn.load_model('{name}'{options})", **environment)
    assert shown.startswith(f"InputError: model '{name}': ")
    assert message in shown
    assert "\n" not in shown


def test_a_classifier_of_a_hub_model_remembers_the_commit(ask, reviews, tmp_path):
    texts, labels = reviews
    program = (
        f"clf = sn.SpinClassifier('some/model').fit({texts!r}, {labels!r})\nclf.save_pretrained({str(tmp_path / 'clf')!r})"
    )
    ask(program)
    base = json.loads((tmp_path / "clf" / "spin_classifier.json").read_text())["base_model"]
    assert (base["name"], base["revision"]) == ("some/model", COMMIT)
    again = f"print(sn.SpinClassifier.from_pretrained({str(tmp_path / 'clf')!r}).predict('good film'))"
    assert ask(again, HF_HUB_OFFLINE="1") in ("positive", "negative")


def test_a_classifier_goes_to_the_hub_and_comes_back(ask, hub, saved, fitted, tiny_model):
    program = f"clf = sn.SpinClassifier.from_pretrained({str(saved)!r})\n"
    program += "print(clf.push_to_hub('me/clf', base_model='some/model'))\n"
    program += "again = sn.SpinClassifier.from_pretrained('me/clf')\n"
    program += "print(again.model, again.predict_proba('good film').tolist())"
    address, shown = ask(program, HF_TOKEN="hf_test").splitlines()
    assert address.endswith("/me/clf")
    model, probabilities = shown.split(" ", 1)
    assert model == "some/model"
    assert json.loads(probabilities) == fitted.predict_proba("good film").tolist()
    uploaded = {name: content for name, content in hub[2].items() if name.startswith("me/clf/")}
    assert uploaded.keys() == {"me/clf/spin_classifier.json", "me/clf/head.safetensors"}
    assert not any(str(tiny_model.parent).encode() in content for content in uploaded.values())


def test_a_local_base_model_is_not_published_under_its_path(ask, hub, saved, tiny_model):
    load = f"clf = sn.SpinClassifier.from_pretrained({str(saved)!r})\n"
    shown = ask(load + "clf.push_to_hub('me/clf')", HF_TOKEN="hf_test")
    assert shown.startswith(f"InputError: push_to_hub: the base model is the local folder {tiny_model}")
    assert shown.endswith("name it: base_model='owner/name'")
    assert "expected a Hub name" in ask(load + f"clf.push_to_hub('me/clf', base_model={str(tiny_model)!r})", HF_TOKEN="hf_test")
    assert not any(name.startswith("me/clf/") for name in hub[2])


def test_a_pickled_classifier_of_a_hub_model_is_pinned_to_its_commit(ask, hub, reviews, tmp_path):
    texts, labels = reviews
    path = str(tmp_path / "clf.pickle")
    ask(
        f"import pickle\nclf = sn.SpinClassifier('some/model').fit({texts!r}, {labels!r})\n"
        f"pickle.dump(clf, open({path!r}, 'wb'))"
    )
    hub[1].clear()
    load = f"import pickle\nclf = pickle.load(open({path!r}, 'rb'))\nprint(clf.model, clf.predict('good film'))"
    assert ask(load, HF_HOME=str(tmp_path / "another-cache")) in ("some/model positive", "some/model negative")
    assert {revision for _, revision, name, _ in hub[1] if name} == {COMMIT}
