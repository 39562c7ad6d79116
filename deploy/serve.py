"""Serves a finished run: a page to drop a picture on, and an address that programs send pictures to.

    python -m deploy.serve runs/NAME                                    http://127.0.0.1:8000/
    curl --data-binary @photo.jpg http://127.0.0.1:8000/predict         {"label": "cat", "probability": 0.97, ...}

It listens on this machine only, unless --host says otherwise: it knows no passwords. Needs packages of its own: pip
install -r requirements-deploy.txt.
"""

import argparse
import html
import sys
import threading
from typing import Any

from deploy import finished, predict
from deploy.finished import Finished
from errors import UserError, first_line
from train import mesh

MEGABYTES = 20  # of a request at most
AT_ONCE = 16  # requests; more are told to come back
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 40rem; padding: 0 1rem; }}
label {{ display: block; border: 2px dashed #888; border-radius: .5rem; padding: 3rem 1rem; text-align: center; }}
img {{ max-width: 100%; max-height: 20rem; }} td {{ padding: .2rem 1rem .2rem 0; }}
</style><h1>{title}</h1>
<label id="drop">Drop a picture here, or choose one<br><input type="file" accept="image/*"></label>
<p><img id="picture" alt=""></p><table id="result"></table><script>
const table = document.getElementById('result');
function row(...cells) {{
  const line = table.insertRow();
  for (const cell of cells) line.insertCell().textContent = cell;
}}
let newest;
async function send(file) {{
  if (!file) return;
  newest = file;
  document.getElementById('picture').src = URL.createObjectURL(file);
  table.replaceChildren();
  let answer;
  try {{
    answer = await (await fetch('predict', {{method: 'POST', body: file}})).json();
  }} catch (error) {{
    answer = {{error: 'No answer: the server is busy or gone, or the picture is too large.'}};
  }}
  if (file !== newest) return;
  if (answer.error) return row(answer.error);
  for (let i = 1; answer[i > 1 ? 'label_' + i : 'label'] !== undefined; i++) {{
    const end = i > 1 ? '_' + i : '';
    row(answer['label' + end], (100 * answer['probability' + end]).toFixed(1) + ' %');
  }}
  if (answer.abstain) row('Too doubtful to rely on.');
  if (answer.unlike) row('Unlike all that it was trained on.');
}}
const drop = document.getElementById('drop');
drop.addEventListener('dragover', event => event.preventDefault());
drop.addEventListener('drop', event => {{ event.preventDefault(); send(event.dataTransfer.files[0]); }});
drop.querySelector('input').addEventListener('change', event => send(event.target.files[0]));
</script></html>"""


def create(run: Finished, doubts: predict.Doubts | None, top: int = 3, megabytes: float = MEGABYTES) -> Any:
    """Returns the ASGI application.

    Args:
        run: The finished run.
        doubts: See `predict.rows`.
        top: Number of labels in an answer.
        megabytes: Largest picture that is taken.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    one_at_a_time = threading.Lock()  # a picture of 100 megapixels takes up to a gigabyte

    def answer(raw: bytes) -> tuple[dict[str, Any], int]:
        with one_at_a_time:
            try:
                image = run.decode(raw)
            except Exception as error:  # Pillow raises many types for damaged files
                return {'error': first_line(error)}, 415
            return predict.answers(run, image[None], top, doubts)[0], 200

    async def predicted(request: Request) -> JSONResponse:
        raw = bytearray()
        too_large = JSONResponse({'error': f'more than {megabytes:g} MB'}, 413)
        length = request.headers.get('content-length', '')
        if length.isdecimal() and int(length) > megabytes * 1e6:
            return too_large
        async for part in request.stream():
            raw += part
            if len(raw) > megabytes * 1e6:
                return too_large
        return JSONResponse(*await run_in_threadpool(answer, bytes(raw)))

    async def page(request: Request) -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        headers = {'Content-Security-Policy': f'{policy}; img-src blob:'}
        return HTMLResponse(PAGE.format(title=html.escape(run.folder.name)), headers=headers)

    return Starlette(routes=[Route('/', page), Route('/predict', predicted, methods=['POST'])])


def main(args: list[str] | None = None) -> int:
    """Runs the command line, returns the exit status."""
    parser = argparse.ArgumentParser(
        'python -m deploy.serve', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('run', help='folder of a finished run')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (default: this machine only)')
    parser.add_argument('--port', type=int, default=8000)
    parser.add_argument('--top', type=int, default=3, metavar='N', help='labels in an answer (default: 3)')
    parser.add_argument('--risk', type=float, default=0.05, metavar='R', help='as for deploy.predict (default: 0.05)')
    parser.add_argument('--data_dir', metavar='DIR', help='prepared data sets (default: $TFDS_DATA_DIR)')
    flags = parser.parse_args(args)
    mesh.configure()
    try:
        run = finished.load(flags.run)
        try:
            import uvicorn

            application = create(run, predict.doubts_or_warning(run, flags.risk, flags.data_dir), flags.top)
        except ImportError as error:
            raise UserError(f'Serving needs packages: pip install -r requirements-deploy.txt ({error}).') from error
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'http://{flags.host}:{flags.port}/ until Ctrl-C')
    uvicorn.run(application, host=flags.host, port=flags.port, limit_concurrency=AT_ONCE, log_level='warning')
    return 0


if __name__ == '__main__':
    sys.exit(main())
