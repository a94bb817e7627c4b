// Runs inside the page /walk of tools/browse.py: shows each page in a frame of each width and measures it there.
const shorten = text => text.replace(/\s+/g, ' ').trim().slice(0, 90)
const query = JSON.parse(decodeURIComponent(location.hash.slice(1)))

function load(page, width) {
  const frame = document.createElement('iframe')
  frame.style.cssText = `width: ${width}px; height: 1600px; border: 0; display: block`
  return new Promise(done => {
    frame.onload = () => done(frame)
    frame.src = '/' + page
    document.body.append(frame)
  })
}

function rgb(color) {  // red, green, blue in 0 to 255 and alpha
  const [r, g, b, a = 1] = (color.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number)
  return color.startsWith('color(srgb') ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a]
}

function ground(node, view) {  // the colour behind `node`, its parents' colours blended in
  const layers = []
  for (let n = node; n; n = n.parentElement) layers.unshift(rgb(view.getComputedStyle(n).backgroundColor))
  const schemes = view.getComputedStyle(view.document.documentElement).colorScheme
  const dark = view.matchMedia('(prefers-color-scheme: dark)').matches && schemes.includes('dark')
  const blend = (below, [r, g, b, a]) => [r, g, b].map((c, i) => a * c + (1 - a) * below[i])
  return layers.reduce(blend, dark ? [18, 18, 18] : [255, 255, 255])
}

function contrast(one, two) {  // as WCAG 2 defines it
  const light = color => color.slice(0, 3).map(c => c / 255).map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0)
  const [a, b] = [light(one), light(two)].sort((x, y) => y - x)
  return (a + .05) / (b + .05)
}

function scrolls(node, view) {  // whether some parent keeps what is too wide to itself
  for (let n = node.parentElement; n && n !== view.document.body; n = n.parentElement)
    if (['auto', 'scroll', 'hidden'].includes(view.getComputedStyle(n).overflowX)) return true
  return false
}

function tooWide(doc, view, width) {
  if (doc.documentElement.scrollWidth <= width) return []
  const out = [...doc.body.querySelectorAll('*')].filter(n => n.getBoundingClientRect().right > width + 1 && !scrolls(n, view))
  const deepest = out.filter(n => !out.some(m => m !== n && n.contains(m))).slice(0, 3)
  const named = deepest.map(n => `<${n.localName}> ${shorten(n.textContent)}`).join('; ')
  return [`the page is ${doc.documentElement.scrollWidth} wide: ${named}`]
}

const cutOff = doc => [...doc.querySelectorAll('pre.sourceCode')]
  .filter(p => !p.closest('.cell-output') && p.scrollWidth > p.clientWidth + 1).map(p => `code is cut off: ${shorten(p.textContent)}`)

const pictures = doc => [...doc.images].flatMap((img, i) => [
  ...(img.naturalWidth || !img.src.startsWith(location.origin) ? [] : [`picture ${i + 1} does not load: ${shorten(img.src)}`]),
  ...(img.alt.trim() ? [] : [`picture ${i + 1} has no alt text`])])

function unreadable(doc, view) {
  const nodes = [...doc.querySelectorAll('p, li, td, th, h1, h2, h3, a, code, figcaption, summary, code span')]
    .filter(n => [...n.childNodes].some(c => c.nodeType === 3 && c.data.trim()) && n.getClientRects().length)
  const low = nodes.filter(n => contrast(rgb(view.getComputedStyle(n).color), ground(n, view)) < 4.5)
  return low.length ? [`${low.length} texts without contrast, such as <${low[0].localName}> ${shorten(low[0].textContent)}`] : []
}

function rawMarkup(doc) {
  const found = []
  const walker = doc.createTreeWalker(doc.querySelector('main') || doc.body, NodeFilter.SHOW_TEXT)
  const inProse = /\]\([\w./#:-]+\)|(^|\n)\s*(#{1,6} |:::)|```|\*\*\w|\{#\w|\{\.\w|(?<![\w`])`\w/
  const anywhere = /__main__\.|\bat 0x[0-9a-f]{6,}|\]\(https?:[^)]*\)|\/(work|root|tmp|home)\/[\w.-]+\//
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest('script, style, math, .math, annotation')) continue
    const code = node.parentElement.closest('pre, code')
    const hit = (code ? anywhere : new RegExp(inProse.source + '|' + anywhere.source)).exec(node.data)
    if (hit) found.push(`raw markup: ${shorten(node.data.slice(Math.max(0, hit.index - 30), hit.index + 60))}`)
  }
  return [...new Set(found)]
}

function measure(page, width, frame) {
  const doc = frame.contentDocument, view = frame.contentWindow
  const ids = [...doc.querySelectorAll('[id]')].map(n => n.id)
  const links = [...doc.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))
  const problems = [tooWide(doc, view, width), cutOff(doc), pictures(doc), unreadable(doc, view), rawMarkup(doc)].flat()
  return {page, width, ids, links, problems}
}

async function walk() {
  const measured = []
  for (const page of query.pages)
    for (const width of query.widths) {
      const frame = await load(page, width)
      if (query.stay) return
      measured.push(measure(page, width, frame))
      frame.remove()
    }
  await fetch('/measured', {method: 'POST', body: JSON.stringify(measured)})
}
walk()
