"""The page's style sheet and script: inlined, so that the page is one file."""

CSS = """
:root{color-scheme:light dark;--bg:#f7f6f3;--card:#fff;--ink:#1d2026;--soft:#5c626d;--line:#e3e0d9;
--track:#eeece6;--c1:#3355b5;--c2:#c2672a;--c3:#2f8577;--right:#1c7a4a;--rightbg:#e8f4ec;
--wrong:#b8372b;--wrongbg:#fbecea;--onheat:#fff;
--serif:"Iowan Old Style","Palatino Linotype",Palatino,"Book Antiqua","Noto Serif",Georgia,serif;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Helvetica Neue",Arial,sans-serif;
--mono:ui-monospace,"SF Mono","Cascadia Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media (prefers-color-scheme:dark){:root{--bg:#13151a;--card:#1b1e25;--ink:#e8e6e1;--soft:#a0a6b1;
--line:#31353e;--track:#282c34;--c1:#8ba6f5;--c2:#eea062;--c3:#6cc5b4;--right:#6fd39b;
--rightbg:#1a2d24;--wrong:#ff9285;--wrongbg:#36211f;--onheat:#13151a}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 var(--sans)}
main,header,footer{max-width:1160px;margin:0 auto;padding:0 20px}
header{padding-top:44px}
.eyebrow{margin:0;color:var(--soft);font-size:13px;letter-spacing:.08em;text-transform:uppercase}
h1{font:600 clamp(28px,5vw,42px)/1.15 var(--serif);margin:4px 0 10px;overflow-wrap:anywhere}
h2{font:600 25px/1.25 var(--serif);margin:0 0 4px}
h3{font:600 16px/1.35 var(--sans);margin:0}
.facts{display:flex;flex-wrap:wrap;gap:4px 20px;margin:0;padding:0;list-style:none;
color:var(--soft);font-size:14px}
.facts b{color:var(--ink);font-weight:600}
nav{display:flex;flex-wrap:wrap;gap:6px 18px;margin:18px 0 0;padding:12px 0;font-size:14px;
border-block:1px solid var(--line)}
a{color:var(--c1);text-decoration:none}a:hover{text-decoration:underline}
section{padding:34px 0 4px}
.lead{margin:0 0 18px;color:var(--soft);max-width:74ch}
.verdict{font:400 clamp(19px,2.6vw,23px)/1.45 var(--serif);margin:26px 0 22px;max-width:56ch}
.verdict b{font-weight:600}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px}
.note{border-left:3px solid var(--c2);padding:8px 14px;margin:16px 0;background:var(--card);
font-size:14px;overflow-wrap:anywhere}
.note p{margin:2px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,230px),1fr));gap:14px;
margin-bottom:14px}
.tile p{margin:0;color:var(--soft);font-size:13.5px}
.tile .what{display:flex;justify-content:space-between;gap:4px 12px;flex-wrap:wrap;font-weight:600}
.tile .what span{font-weight:400}
.tile .big{color:var(--ink);font:600 38px/1.15 var(--serif);font-variant-numeric:lining-nums}
.tile .big small{font:400 15px var(--sans);color:var(--soft)}
.barchart{display:grid;gap:9px}
.barrow{display:grid;grid-template-columns:minmax(92px,170px) 1fr;gap:14px;align-items:center}
.barrow .name{font-size:14.5px;line-height:1.25;overflow-wrap:anywhere}
.barrow small{display:block;color:var(--soft);font-size:12px}
.bars{display:grid;gap:5px}
.bar{display:grid;grid-template-columns:1fr 52px;gap:8px;align-items:center}
.bar b{font:600 13px/1 var(--sans);font-variant-numeric:tabular-nums;text-align:right}
.track{position:relative;height:13px;background:var(--track);border-radius:3px}
.track i{display:block;height:100%;border-radius:3px}
.track s{position:absolute;top:-2px;bottom:-2px;width:3px;margin-left:-1.5px;background:var(--ink);
border-radius:1px;box-shadow:0 0 0 1px var(--card)}
i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}
.barrow.all{padding-bottom:10px;border-bottom:1px solid var(--line)}
.barhead{font-size:12px;letter-spacing:.06em;text-transform:uppercase;color:var(--soft);
margin:8px 0 0}
.timebar{display:flex;height:16px;border-radius:4px;overflow:hidden;background:var(--track)}
.timebar i{display:block;min-width:1px}
.legend{display:flex;flex-wrap:wrap;gap:3px 16px;margin:8px 0 0;font-size:13px;color:var(--soft)}
.legend b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.key{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;
vertical-align:-1px}
.key.ramp{width:64px;margin:0 6px 0 4px;background:linear-gradient(90deg,transparent,var(--c1));
box-shadow:inset 0 0 0 1px var(--line)}
.key.mark{width:3px;height:14px;background:var(--ink);border-radius:1px;vertical-align:-3px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:14px}
.chart{margin:0;padding:14px 14px 12px;position:relative}
figcaption{margin-bottom:6px;font-size:15px}
figcaption small{display:block;color:var(--soft);font-size:12.5px}
svg{display:block;width:100%;height:auto;overflow:visible;touch-action:pan-y}
svg text{font:11px var(--sans);fill:var(--soft);font-variant-numeric:tabular-nums}
svg .end{text-anchor:end}svg .middle{text-anchor:middle}
.grid{stroke:var(--line);stroke-width:1}
polyline{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
polyline.raw{stroke-width:1.2;opacity:.3}
polyline.c1{stroke:var(--c1)}polyline.c2{stroke:var(--c2)}polyline.c3{stroke:var(--c3)}
circle.dot{stroke:var(--card);stroke-width:1}
.c1{fill:var(--c1)}.c2{fill:var(--c2)}.c3{fill:var(--c3)}
polyline.c1,polyline.c2,polyline.c3{fill:none}
rect.heat{fill:var(--c1)}
svg text.cell{fill:var(--ink);font-size:10px}svg text.cell.on{fill:var(--onheat)}
.balanced{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:4 3}
.level{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 4;opacity:.7}
.cursor{stroke:var(--soft);stroke-width:1;visibility:hidden}
.cursor.on{visibility:visible}
.readout{position:absolute;top:12px;right:12px;padding:2px 8px;border-radius:6px;font-size:12px;
background:var(--ink);color:var(--bg);pointer-events:none;font-variant-numeric:tabular-nums}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,248px),1fr));gap:14px}
.pic{padding:0;overflow:hidden;display:flex;flex-direction:column}
.pic img,.nopic{display:block;width:100%;aspect-ratio:1;object-fit:contain;
background:var(--track)}
.nopic{display:grid;place-items:center;color:var(--soft);font-size:13px}
.qas{list-style:none;margin:0;padding:4px 0 6px}
.qas li{padding:9px 14px 10px}
.qas li+li{border-top:1px solid var(--line)}
.q{margin:0 0 4px;font-size:14.5px;line-height:1.35;overflow-wrap:anywhere}
.kind{float:right;margin-left:8px;font-size:11.5px;color:var(--soft)}
.a{margin:2px 0 0;font-size:14px;line-height:1.35;padding:3px 8px 3px 26px;border-radius:5px;
position:relative;overflow-wrap:anywhere}
.a::before{position:absolute;left:8px;font-weight:700}
.ok{background:var(--rightbg)}.ok::before{content:"✓";color:var(--right)}
.no{background:var(--wrongbg)}.no::before{content:"✗";color:var(--wrong)}
.ref{color:var(--soft);padding-top:1px;padding-bottom:0}
.ref::before{content:"→";font-weight:400}
.a mark,.cap mark{background:none;color:inherit;text-decoration:underline wavy var(--wrong) 1.2px;
text-underline-offset:3px}
.caps{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:14px}
.capcard{display:grid;grid-template-columns:128px 1fr;gap:16px;align-items:start}
.capcard img,.capcard .nopic{width:100%;aspect-ratio:1;object-fit:contain;border-radius:6px;
background:var(--track)}
.cap{margin:0 0 8px;font:400 17px/1.4 var(--serif);overflow-wrap:anywhere}
.refs{margin:0;padding-left:18px;font-size:13.5px;line-height:1.4;color:var(--soft)}
.refs li.hit{color:var(--right)}
details{margin-top:14px}
summary{cursor:pointer;font-weight:600;padding:6px 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14.5px}
th{font-weight:600;text-align:left;font-size:12.5px;color:var(--soft)}
th,td{padding:7px 12px 7px 0;border-bottom:1px solid var(--line);vertical-align:top}
tbody tr:last-child td{border-bottom:0}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;padding-left:12px;
padding-right:0}
td small{display:block;color:var(--soft);font-size:13px;line-height:1.35;max-width:64ch}
table.layers th{vertical-align:top}table.layers th.n{min-width:13ch}
th small{display:block;font-weight:400;line-height:1.35;margin-top:2px}
th.n{white-space:normal;min-width:7ch;vertical-align:bottom}
td .arrow{color:var(--soft)}
tr.group td{padding-top:18px;font:600 16px var(--serif)}
code{font:13px var(--mono);overflow-wrap:anywhere}
footer{color:var(--soft);font-size:13px;padding-top:26px;padding-bottom:44px}
@media (max-width:520px){main,header,footer{padding-left:14px;padding-right:14px}
header{padding-top:26px}.pic img,.pic .nopic{aspect-ratio:4/3}
.barrow{grid-template-columns:96px 1fr;gap:10px}
.bar{grid-template-columns:1fr 46px;gap:6px}.capcard{grid-template-columns:88px 1fr;gap:12px}
td code{font-size:12px}td.n{padding-left:8px}table{font-size:14px}}
@media print{body{background:#fff}nav,.readout{display:none}.card{break-inside:avoid}
section{break-before:auto}}
"""

# A readout under the pointer on every line chart. Everything else works without scripts.
SCRIPT = """
for (const svg of document.querySelectorAll("svg[data-series]")) {
  const series = JSON.parse(svg.dataset.series), cursor = svg.querySelector(".cursor");
  const box = document.createElement("div");
  box.className = "readout"; box.hidden = true; svg.parentNode.append(box);
  svg.addEventListener("pointermove", event => {
    const place = svg.getBoundingClientRect();
    const x = (event.clientX - place.left) / place.width * svg.viewBox.baseVal.width;
    const nearest = s => s.x.reduce((b, v, i) => Math.abs(v - x) < Math.abs(s.x[b] - x) ? i : b, 0);
    const at = series.map(nearest);
    cursor.setAttribute("x1", series[0].x[at[0]]); cursor.setAttribute("x2", series[0].x[at[0]]);
    box.textContent = "step " + series[0].step[at[0]] + " · " +
      series.map((s, k) => (series.length > 1 ? s.name + " " : "") + s.text[at[k]]).join(" · ");
    box.hidden = false; cursor.classList.add("on");
  });
  svg.addEventListener("pointerleave", () => {
    box.hidden = true; cursor.classList.remove("on");
  });
}
"""
