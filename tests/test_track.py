"""Metrics reach TensorBoard, MLflow and Weights & Biases once, however often a run is interrupted."""

import http.server
import json
import posixpath
import struct
import sys
import threading
import time
import types

import pytest

from deploy import track
from errors import UserError

ROWS = [
    {'step': 5, 'loss': 2.0, 'fixmatch/mask_rate': None, 'seconds': 1.0},
    {'step': 10, 'loss': 1.5, 'fixmatch/mask_rate': 0.5, 'seconds': 2.0},
    {'step': 10, 'test_accuracy': 0.25, 'seconds': 3.0},
    {'step': 15, 'loss': 1.0, 'fixmatch/mask_rate': 0.75, 'seconds': 4.0},
]
SENT = sorted(
    (row['step'], key, value) for row in ROWS for key, value in row.items() if key != 'step' and value is not None
)


def write(folder, rows, finished=False):
    """Writes the files of a run as they are after some rows."""
    folder.mkdir(exist_ok=True)
    config = {'steps': 15, 'data': {'name': 'digits'}, 'pictures': {'photos/': 'a1'}}
    if not (folder / 'config.json').exists():  # a run writes it once
        (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    if finished:
        (folder / 'result.json').write_text('{}')


def interrupted(folder, name):
    """A run is followed, killed, goes on after its last checkpoint, and ends."""
    for rows, finished in ((ROWS[:3], False), (ROWS[:1], False), (ROWS[:3], False), (ROWS, True), (ROWS, True)):
        write(folder, rows, finished)
        assert track.main([str(folder), f'--to={name}']) == 0


def events(folder):
    """Yields the events of TensorBoard's files, records of a length, its checksum, the content and its checksum."""
    event_pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack('<Q', content[:8])
            yield event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_tensorboard_gets_every_value_once(tmp_path):
    pytest.importorskip('tensorboardX')
    interrupted(tmp_path / 'run', 'tensorboard')
    found = [(e, v) for e in events(tmp_path / 'run' / 'tensorboard') for v in e.summary.value]
    scalars = [(e, v) for e, v in found if v.HasField('simple_value')]
    assert sorted((e.step, v.tag, v.simple_value) for e, v in scalars) == SENT
    times = {v.simple_value: e.wall_time for e, v in scalars if v.tag == 'seconds'}
    assert times[4.0] - times[1.0] == pytest.approx(3)
    assert times[1.0] == pytest.approx((tmp_path / 'run' / 'config.json').stat().st_mtime + 1)
    assert any(b'data.name = digits' in e.SerializeToString() for e, _ in found)


@pytest.fixture
def mlflow(monkeypatch):
    """Returns the calls that a server gets, which knows only what MLflow's REST API has; 'down' makes it fail."""
    calls, known = [], {'down': False}

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status, values):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(values).encode())

        def do_GET(self):
            assert self.path == '/api/2.0/mlflow/experiments/get-by-name?experiment_name=adaptax'
            self.answer(*((200, {'experiment': known['experiment']}) if 'experiment' in known else (404, {})))

        def do_POST(self):
            values = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            name = self.path.removeprefix('/api/2.0/mlflow/')
            if known['down']:
                return self.answer(503, {})
            calls.append((name, values))
            if name == 'experiments/create':
                known['experiment'] = {'experiment_id': '7'}
                return self.answer(200, known['experiment'])
            if name == 'runs/create':
                assert values['experiment_id'] == '7'
                return self.answer(200, {'run': {'info': {'run_id': f'run{len(calls)}'}}})
            assert name in ('runs/log-batch', 'runs/update')
            assert len(values.get('metrics', ())) <= 1000
            assert len(values.get('params', ())) <= 100
            for item in (*values.get('metrics', ()), *values.get('params', ())):
                assert posixpath.normpath(item['key']) == item['key']  # a rule of MLflow's
            return self.answer(200, {})

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv('MLFLOW_TRACKING_URI', f'http://127.0.0.1:{server.server_port}')
        yield types.SimpleNamespace(calls=calls, known=known)
        server.shutdown()
        thread.join()


def test_mlflow_has_one_run_and_every_value_once(mlflow, tmp_path):
    interrupted(tmp_path / 'run', 'mlflow')
    assert [name for name, _ in mlflow.calls].count('runs/create') == 1
    assert len({values['run_id'] for name, values in mlflow.calls if 'run_id' in values}) == 1
    batches = [values for name, values in mlflow.calls if name == 'runs/log-batch']
    metrics = [(m['step'], m['key'], m['value']) for values in batches for m in values.get('metrics', ())]
    assert sorted(metrics) == SENT
    params = {p['key']: p['value'] for values in batches for p in values.get('params', ())}
    assert params == {'steps': '15', 'data.name': 'digits', 'pictures.photos': 'a1'}
    assert ('runs/update', 'FINISHED') in [(name, values.get('status')) for name, values in mlflow.calls]
    interrupted(tmp_path / 'other', 'mlflow')
    assert [name for name, _ in mlflow.calls].count('experiments/create') == 1


def test_a_server_that_fails_is_one_line_and_loses_nothing(mlflow, tmp_path, capsys):
    write(tmp_path / 'run', ROWS[:1])
    assert track.main([str(tmp_path / 'run'), '--to=mlflow']) == 0
    write(tmp_path / 'run', ROWS, finished=True)
    mlflow.known['down'] = True
    assert track.main([str(tmp_path / 'run'), '--to=mlflow']) == 1
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    assert 'refused runs/' in message
    mlflow.known['down'] = False
    assert track.main([str(tmp_path / 'run'), '--to=mlflow']) == 0
    metrics = [m for name, values in mlflow.calls for m in values.get('metrics', ())]
    assert sorted((m['step'], m['key'], m['value']) for m in metrics) == SENT


def test_a_run_that_failed_to_begin_there_is_begun_once(mlflow, tmp_path, monkeypatch):
    write(tmp_path / 'run', ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(track.MLflow, 'begin', lambda *_: (_ for _ in ()).throw(UserError('no')))
        assert track.main([str(tmp_path / 'run'), '--to=mlflow']) == 1
    interrupted(tmp_path / 'run', 'mlflow')
    assert [name for name, _ in mlflow.calls].count('runs/create') == 1
    assert [len(values['params']) for _, values in mlflow.calls if 'params' in values] == [3]


def test_many_rows_are_sent_in_parts_and_each_once_after_a_failure(mlflow, tmp_path, monkeypatch):
    rows = [{'step': i, 'loss': float(i), 'seconds': float(i)} for i in range(1, 121)]
    write(tmp_path / 'run', rows, finished=True)
    send, parts = track.MLflow.send, []

    def fails_once(self, new):
        parts.append(len(new))
        if len(parts) == 2:
            raise UserError('no')
        send(self, new)

    monkeypatch.setattr(track.MLflow, 'send', fails_once)
    assert track.main([str(tmp_path / 'run'), '--to=mlflow']) == 1
    assert track.main([str(tmp_path / 'run'), '--to=mlflow']) == 0
    assert parts == [50, 50, 50, 20]
    metrics = [m for _, values in mlflow.calls for m in values.get('metrics', ())]
    assert sorted((m['step'], m['value']) for m in metrics if m['key'] == 'loss') == [(i, i) for i in range(1, 121)]


def test_no_server_is_one_line(tmp_path, monkeypatch, capsys):
    write(tmp_path / 'run', ROWS)
    for address, said in (
        ('http://127.0.0.1:9', 'does not answer'),
        ('http://localhost:abc', 'does not answer'),
        ('file:///tmp', 'is the address of a server'),
    ):
        monkeypatch.setenv('MLFLOW_TRACKING_URI', address)
        assert track.main([str(tmp_path / 'run'), '--to=mlflow']) == 1
        assert said in capsys.readouterr().err


def test_wandb_has_one_run_and_every_value_once(tmp_path, monkeypatch):
    logged, begun, configs = {}, [], []

    class Run:
        def __init__(self, identity):
            self.identity = identity
            self.config = types.SimpleNamespace(update=lambda values, allow_val_change: configs.append(values))

        def define_metric(self, name, step_metric):
            assert (name, step_metric) == ('*', 'step')

        def log(self, values):  # without `step`: W&B drops rows of the last step after a pause
            logged.setdefault(self.identity, []).append(values)

        def finish(self):
            active.remove(self)

    active = []

    def init(reinit, **values):
        begun.append(values)
        if not active or reinit == 'create_new':  # otherwise W&B returns the active run
            active.append(Run(values['id']))
        return active[-1]

    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    interrupted(tmp_path / 'run', 'wandb')
    write(tmp_path / 'other', ROWS, finished=True)
    assert track.main([str(tmp_path / 'run'), str(tmp_path / 'other'), '--to=wandb']) == 0
    assert not active
    assert len(logged) == 2
    for rows in logged.values():
        sent = [(row['step'], key, value) for row in rows for key, value in row.items() if key != 'step']
        assert sorted(sent) == SENT
    assert {values['resume'] for values in begun} == {'allow'}
    assert configs == 2 * [{'steps': 15, 'data.name': 'digits', 'pictures.photos/': 'a1'}]


def test_following_ends_with_the_last_run(mlflow, tmp_path, monkeypatch):
    monkeypatch.setattr(track, 'SECONDS', 0.01)
    folders = [tmp_path / name for name in ('one', 'two')]
    for folder in folders:
        write(folder, ROWS[:1])
    thread = threading.Thread(target=track.copy, args=(folders, 'mlflow', True))
    thread.start()
    write(folders[0], ROWS, finished=True)
    time.sleep(0.1)
    assert thread.is_alive()
    write(folders[1], ROWS, finished=True)
    thread.join(10)
    assert not thread.is_alive()
    metrics = [m for name, values in mlflow.calls for m in values.get('metrics', ())]
    assert len(metrics) == 2 * len(SENT)


def test_what_is_no_run_or_is_not_installed_is_one_line(tmp_path, monkeypatch, capsys):
    assert track.main([str(tmp_path), '--to=mlflow']) == 1
    assert 'is not the folder of a run' in capsys.readouterr().err
    write(tmp_path / 'run', ROWS)
    (tmp_path / 'tables').mkdir()
    (tmp_path / 'run' / 'track-mlflow.json').write_text('{')
    assert track.main([str(tmp_path / 'run'), str(tmp_path / 'tables'), '--to=mlflow']) == 1
    assert 'damaged' in capsys.readouterr().err
    assert track.main([str(tmp_path / 'tables'), str(tmp_path), '--to=mlflow']) == 1
    assert 'None of these' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match='pip install wandb'):
        track.copy([tmp_path / 'run'], 'wandb')
