"""How a report looks: colours (Okabe and Ito's, which who is colour-blind can tell apart), CSS.

Light and dark come from the reader's settings; paper is always light.
"""

from __future__ import annotations

from typing import Final

_LIGHT: Final = """
--page:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#57606a;--rule:#d8dee4;--grid:#e7ebef;
--copied:#0072b2;--retired:#009e73;--cow:#d55e00;--actual:#1b1f24;--now:#a5adb6;
--latency:#8a3f8f;--rate:#0072b2;--band:#0072b214;--band-verify:#8a3f8f1c;
--begin:#1b1f24;--retire:#009e73;--gate:#b1508a;--brake:#d55e00;--grow:#b07a00;--end:#0072b2;
--source:#dfe5ec;--hatch:#b3bcc6;
--good:#00704f;--bad:#b3261e;--wait:#8a5a00;--busy:#005f96;
"""
_DARK: Final = """
--page:#0f1216;--card:#181c22;--ink:#e8ecf0;--soft:#9aa5b1;--rule:#2d343d;--grid:#262c34;
--copied:#56b4e9;--retired:#2fc79a;--cow:#ff8a3d;--actual:#e8ecf0;--now:#66717d;
--latency:#d993dc;--rate:#56b4e9;--band:#56b4e91a;--band-verify:#d993dc1f;
--begin:#e8ecf0;--retire:#2fc79a;--gate:#e58fc0;--brake:#ff8a3d;--grow:#f0c75e;--end:#56b4e9;
--source:#2f3842;--hatch:#55606c;
--good:#4fd1a5;--bad:#ff8a80;--wait:#f0c75e;--busy:#7cc4f0;
"""

_REASONS: Final = ("begin", "retire", "gate", "brake", "grow", "end")
_SERIES: Final = ("copied", "retired", "cow", "actual", "now", "latency", "rate")

CSS: Final = "\n".join([
    f":root{{color-scheme:light dark;{_LIGHT}}}",
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}",
    *(f".line.{name}{{stroke:var(--{name})}}" for name in _SERIES),
    *(f".area.{name}{{fill:var(--{name})}}" for name in _SERIES),
    *(f".r-{name}{{fill:var(--{name})}}" for name in _REASONS),
    """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.45;
  font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
main{max-width:1240px;margin:0 auto;padding:24px 20px 40px}
h1{font-size:24px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:17px;margin:0 0 2px}
h3{font-size:14px;margin:0 0 6px}
p{margin:0 0 10px}
.soft,.note{color:var(--soft)}
.note{font-size:13px}
.path{overflow-wrap:anywhere;color:var(--soft);margin:0 0 14px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:16px 18px;
  margin:0 0 16px}
.verdict{border-left:6px solid var(--tone);padding-left:14px;margin:0 0 16px}
.verdict strong{color:var(--tone)}
.verdict p{margin:2px 0 0;overflow-wrap:anywhere}
.good{--tone:var(--good)}.bad{--tone:var(--bad)}.wait{--tone:var(--wait)}.busy{--tone:var(--busy)}
.tiles{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:1px;background:var(--rule);
  border:1px solid var(--rule);border-radius:8px;overflow:hidden;margin:0 0 16px}
.tile{background:var(--card);padding:12px 14px}
.tile b{display:block;font-size:21px;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{display:block;font-size:13px;color:var(--soft)}
dl{display:grid;grid-template-columns:repeat(2,max-content minmax(0,1fr));gap:4px 16px;margin:0;
  font-size:14px}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.row{display:grid;grid-template-columns:minmax(0,1fr) 330px;gap:8px 34px;align-items:start}
.row+.row{margin-top:18px}
.maps{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:20px 34px}
.chart{padding:18px 14px 26px 62px}
.chart.bare{padding-bottom:4px}
.plot{display:block;overflow:visible}
.plot text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}
.plot text.label{fill:var(--ink);paint-order:stroke;stroke:var(--card);stroke-width:3px;
  stroke-linejoin:round}
.plot text.label.full{fill:var(--cow)}
.grid{stroke:var(--grid)}
.mark{stroke:var(--soft);stroke-dasharray:2 3}
.band{fill:var(--band)}.band.verify{fill:var(--band-verify)}
.dot{overflow:visible}
.dot path{stroke:var(--card);stroke-width:.7}
.stretched{overflow:hidden}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round;
  vector-effect:non-scaling-stroke}
.line.retired{stroke-dasharray:6 4}
.line.actual{stroke-width:1.5;stroke-dasharray:1 4}
.line.full{stroke:var(--cow);stroke-width:1.5;stroke-dasharray:1 4}
.line.now{stroke-width:1;stroke-dasharray:none}
.area{opacity:.13}
.hover{fill:transparent}
.hover:hover{fill:var(--ink);fill-opacity:.07}
.key{vertical-align:-2px;margin-right:7px;flex:none}
.legend{list-style:none;margin:0 0 12px;padding:0;font-size:14px}
.legend li{display:flex;align-items:baseline}
.legend .key{align-self:center}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums;
  margin:0 0 8px}
th,td{text-align:right;padding:4px 0 4px 10px;border-bottom:1px solid var(--rule);
  vertical-align:baseline;white-space:nowrap}
th{font-weight:500;color:var(--soft)}
th:first-child,td:first-child{text-align:left;padding-left:0}
tbody th{color:var(--ink)}
.log td,.log th{text-align:left}
.log td:last-child{overflow-wrap:anywhere;white-space:normal}
.log td:nth-child(-n+2){color:var(--soft)}
.log td:last-child{width:100%}
.map{display:block;width:100%;height:auto;margin:0 0 8px}
.cell.source{fill:var(--source)}.cell.cow{fill:var(--cow)}
.cell.none{fill:transparent;stroke:var(--hatch);stroke-width:.6}
.hatch{stroke:var(--hatch);stroke-width:.8;fill:none}
.key .band{stroke:var(--rule)}
path.key-source{fill:var(--source)}.key-hatch{fill:none;stroke:var(--hatch)}
.scale{display:flex;align-items:center;gap:8px;font-size:13px;color:var(--soft);margin:0 0 4px}
.scale i{flex:1;max-width:240px;height:12px;border-radius:2px}
.scale .fade{background:linear-gradient(90deg,
  color-mix(in srgb,var(--cow) 16%,transparent),var(--cow))}
footer{color:var(--soft);font-size:13px}
@media screen and (max-width:900px){
  .row,.maps{grid-template-columns:minmax(0,1fr)}
  dl{grid-template-columns:max-content minmax(0,1fr)}
  .tiles{grid-template-columns:repeat(2,minmax(0,1fr))}
}
@media screen and (max-width:560px){
  main{padding:14px 10px 24px}
  .card{padding:12px}
  .chart{padding-left:54px;padding-right:8px}
  .tile{padding:9px 10px}
  .tile b{font-size:18px}
  .log td:nth-child(1){display:none}
  .log th:nth-child(1){display:none}
}
@media print{
  body{background:#fff;font-size:12px}
  .row{grid-template-columns:minmax(0,1fr) 265px;gap:6px 16px}
  dl,.legend,.note,.log,.tile span{font-size:11px}
  table{font-size:10.5px}
  th,td{padding:2px 0 2px 5px}
  .tile b{font-size:16px}
  .card{padding:10px 12px;margin:0 0 10px}
  *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
  main{max-width:none;padding:0}
  .row,.maps,.tiles,.verdict,tr{break-inside:avoid}
  h2,h3,h2+p{break-after:avoid}
}
""",
])  # fmt: skip
