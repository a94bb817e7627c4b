"""Walk every page of a built site in headless Chromium, at two widths, light and dark: links and anchors, overflow,
code that is cut off, text that cannot be read on its ground, pictures, raw markup, messages on the console."""
import json, os, re, shutil, subprocess, sys, tempfile, threading
from argparse import ArgumentParser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

WIDTHS = 1280, 390
THEMES = dict(light='', dark='--blink-settings=preferredColorScheme=0')
WALKER = Path(__file__).with_name('browse.js').read_text(encoding='utf-8')
BROKEN = """<!doctype html><html lang="en"><main><p>Raw [text](page.html).</p><p style="color: #ccc; background: #fff">Pale</p>
<pre class="sourceCode" style="overflow: auto"><code>CODE</code></pre><div style="width: 2000px">Wide</div><img src="none.png">
<a href="none.html">1</a><a href="#none">2</a><script>console.error("an error")</script></main></html>""".replace('CODE', 'long' * 100)
FAULTS = ('the page is', 'cut off', 'without contrast', 'does not load', 'no alt text', 'raw markup', 'no page for', 'no anchor for',
          'an error')
CONSOLE = re.compile(r':CONSOLE[:(]\d+\)?\] (".*)')


def browser():
    "The path of a Chromium, or None."
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)


class Site(SimpleHTTPRequestHandler):
    "The folder, and two addresses of ours: /walk runs browse.js over `pages`, which posts what it measured to /measured."
    def log_message(self, *args): pass

    def do_GET(self):
        if not self.path.startswith('/walk'): return super().do_GET()
        page = f'<!doctype html><link rel="icon" href="data:,"><body style="margin:0"><script>{WALKER}</script>'.encode()
        self.send_response(200)
        self.send_header('Content-Type', 'text/html; charset=utf-8')
        self.send_header('Content-Length', str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def do_POST(self):
        self.server.measured = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()


def serve(folder):
    "A server of `folder` on a free port of this machine."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Site, directory=folder))
    server.done, server.measured = threading.Event(), None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def chromium(address, theme, *options, profile, log):
    "A headless Chromium at `address`, as a process."
    flags = ['--headless=new', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-extensions',
             '--hide-scrollbars', '--disable-background-networking', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
             '--enable-logging=stderr', f'--user-data-dir={profile}', THEMES[theme]]
    if os.geteuid() == 0: flags.append('--no-sandbox')  # it refuses to start as root otherwise
    return subprocess.Popen([browser(), *filter(None, flags), *options, address], stdout=subprocess.DEVNULL, stderr=log)


def walk(server, pages, theme, timeout):
    "What browse.js measured on `pages` in one theme, and what they wrote to the console; other sites are out of reach."
    query = json.dumps(dict(pages=pages, widths=WIDTHS))
    address = f'http://127.0.0.1:{server.server_port}/walk#{query}'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.TemporaryFile('w+') as log:
        server.done.clear()
        running = chromium(address, theme, '--window-size=1400,1000', '--remote-debugging-port=0', profile=profile, log=log)
        try: finished = server.done.wait(timeout)
        finally: running.terminate(); running.wait()
        log.seek(0)
        lines = log.read()
    if not finished: sys.exit(f'Chromium did not finish the {theme} pages in {timeout} s:\n{lines[-2000:]}')
    return server.measured, [line for line in CONSOLE.findall(lines) if re.search(r'source: (http://127\.0\.0\.1|\s|$)', line)]


def link_problems(measured, folder, address):
    "Links of one walk that lead to no file of the site, or to no anchor on its page."
    pages = {m['page']: m for m in measured}
    for page, m in pages.items():
        for href in sorted(set(m['links'])):
            full = urljoin(f'{address}/{page}', href)
            if not full.startswith(address + '/'): continue  # another site: not asked
            path, anchor = unquote(urlsplit(full).path).lstrip('/') or 'index.html', unquote(urlsplit(full).fragment)
            if not (Path(folder)/path).is_file(): yield f'{page}: no page for the link {href}'
            elif anchor and path in pages and anchor not in pages[path]['ids']: yield f'{page}: no anchor for the link {href}'


def screenshots(server, pages, into):
    "Pictures of `pages`, each width and theme, the top 1600 pixels."
    into.mkdir(parents=True, exist_ok=True)
    for page in pages:
        for theme in THEMES:
            for width in WIDTHS:
                query = json.dumps(dict(pages=[page], widths=[width], stay=True))
                shot = into/f"{page.replace('/', '-').replace('.html', '')}-{width}-{theme}.png"
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
                    chromium(f'http://127.0.0.1:{server.server_port}/walk#{query}', theme, f'--screenshot={shot}', '--timeout=5000',
                             f'--window-size={max(500, width)},1600', profile=profile, log=subprocess.DEVNULL).wait(60)
                print(shot)


def check(folder, timeout):
    "What is wrong with the pages in `folder`, a line each; a fault seen at several widths or themes names them."
    server, found = serve(folder), {}
    pages = sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*.html'))
    for theme in THEMES:
        measured, console = walk(server, pages, theme, timeout)
        for m in measured:
            for problem in m['problems']: found.setdefault(f"{m['page']}: {problem}", []).append(f"{m['width']} {theme}")
        for line in [*link_problems(measured, folder, f'http://127.0.0.1:{server.server_port}'), *(f'console: {c}' for c in console)]:
            found.setdefault(line, []).append(theme)
    server.shutdown()
    return pages, [f'{line} ({", ".join(where)})' for line, where in found.items()]


def sees_faults(timeout):
    "Stop unless every kind of fault is found on a page that has them all."
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, 'index.html').write_text(BROKEN, encoding='utf-8')
        found = '\n'.join(check(folder, timeout)[1])
    missed = [fault for fault in FAULTS if fault not in found]
    if missed: sys.exit(f'on a page with every fault these were not seen: {missed}; only:\n{found}')


if __name__ == '__main__':
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('folder', help='the built site: what `tools/pages.py html` wrote, or Quarto')
    parser.add_argument('--shots', type=Path, help='write screenshots there instead')
    parser.add_argument('--pages', nargs='*', help='for the screenshots, by their path in the folder, with #anchor or without')
    parser.add_argument('--timeout', type=int, default=300, help='seconds for one theme')
    args = parser.parse_args()
    if not browser(): sys.exit(print('skipped: no Chromium here (on Debian: apt-get install chromium)'))
    if args.shots: sys.exit(screenshots(serve(args.folder), args.pages, args.shots))
    sees_faults(args.timeout)
    pages, problems = check(args.folder, args.timeout)
    print(*problems, f'{len(pages)} pages at {len(WIDTHS)} widths in {len(THEMES)} themes, {len(problems)} problems', sep='\n')
    sys.exit(bool(problems) or not pages)
