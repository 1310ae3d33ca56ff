"""The page's style sheet: light and dark mode, narrow and wide screens.

A card is as wide as its column even where it is the only one (auto-fill), so a single picture is
not blown up. A table that is wider than the screen scrolls by itself; a shadow says that there is
more.
"""

STYLE = """
:root{
  color-scheme:light dark;--page:#f7f6f3;--card:#fff;--ink:#1f2428;--soft:#5f6a73;--line:#dfdfda;
  --base:#7b858d;--red:#c8452b;--c1:#2467b8;--c2:#0e8070;--c3:#a63d8b;--c4:#96690b;--c5:#6450c4;
  --c6:#4d7c1a;--tint:#c8452b17;--shade:#1f242830}
@media(prefers-color-scheme:dark){
  :root{
    --page:#131619;--card:#1b1f23;--ink:#e4e7e9;--soft:#9aa5ad;--line:#30363c;--base:#98a3ab;
    --red:#f0795d;--c1:#6caaf2;--c2:#45c3b0;--c3:#e685cb;--c4:#dcab4a;--c5:#a898f5;--c6:#9bc95c;
    --tint:#f0795d22;--shade:#0009}
}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:1120px;margin:auto;padding:2.5rem 1.25rem 4rem}
header{max-width:56rem;overflow-wrap:anywhere}
h1{font-size:1rem;font-weight:600;margin:0 0 .9rem;color:var(--soft)}
h2{font-size:1.2rem;margin:2.75rem 0 .9rem}
h3{font-size:1rem;margin:0 0 .3rem;overflow-wrap:anywhere}
p{margin:0 0 .6rem;color:var(--soft);font-size:.9rem}
header p{font-size:1rem;text-wrap:pretty}
small{font-size:.8rem;color:var(--soft)}
header .verdict{
  font-size:clamp(1.2rem,2.6vw,1.6rem);line-height:1.4;font-weight:600;color:var(--ink);
  margin:0 0 1rem}
.grid{
  display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:1.25rem;
  align-items:start}
.three{grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}
.card p:last-child{margin:.6rem 0 0}
.card{
  background:var(--card);min-width:0;border:1px solid var(--line);border-radius:10px;
  padding:1.1rem 1.2rem}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}
text{fill:var(--ink)}
.tick{fill:var(--soft)}
.halo{
  paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round;font-weight:600}
.rule{stroke:var(--line)}
.mark{stroke:var(--base)}
.key{display:flex;flex-wrap:wrap;gap:.1rem 1rem}
.dot{
  display:inline-block;width:.65em;height:.65em;border-radius:50%;margin-right:.4em;
  background:var(--c)}
.base .dot{background:none;border:2px solid var(--c)}
.lost{background:var(--tint)}
.lost b{color:var(--red)}
.shade{background:color-mix(in srgb,var(--c1) calc(var(--s)*.4),transparent)}
.framed{outline:2px solid var(--c1);outline-offset:-2px}
table{
  border-collapse:separate;border-spacing:0;width:100%;font-size:.925rem;
  font-variant-numeric:tabular-nums}
th,td{
  text-align:right;padding:.5rem .75rem;border-top:1px solid var(--line);vertical-align:top;
  white-space:nowrap}
thead th{
  border:0;color:var(--soft);font-weight:500;vertical-align:bottom;white-space:normal}
td small,th small{display:block}
th:first-child{
  text-align:left;position:sticky;left:0;background:var(--card);min-width:7.5rem;padding-left:0;
  white-space:normal;overflow-wrap:anywhere}
th small{font-weight:400}
.scroll,pre{overflow-x:auto}
.scroll{
  background:
    linear-gradient(to left,var(--card) 30%,transparent) right/2.5rem 100% no-repeat local,
    linear-gradient(to left,var(--shade),transparent) right/1rem 100% no-repeat scroll}
.bars{
  display:grid;gap:.35rem .8rem;align-items:center;
  grid-template-columns:minmax(6rem,auto) 1fr auto;font-size:.9rem;overflow-wrap:anywhere}
.bars span:nth-child(3n){text-align:right}
.bars i{display:block;height:.7rem;border-radius:3px;background:var(--c);min-width:2px}
.pair i{height:.4rem;margin:1px 0}
.stack{display:grid;gap:1.25rem;min-width:0}
.card .item{margin:1rem 0 .4rem}
.item b{color:var(--ink)}
.item .far{color:var(--red)}
.pairs{grid-template-columns:minmax(5rem,32%) minmax(3rem,1fr) auto}
.pair i.none{min-width:0}
dt{color:var(--soft)}
dd{margin:0}
dl{
  display:grid;grid-template-columns:auto 1fr;gap:.2rem 1.2rem;margin:0;font-size:.9rem;
  overflow-wrap:anywhere}
[hidden]{display:none!important}
.filters{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:end;margin:.2rem 0 .9rem}
.filters label{display:grid;gap:.15rem;font-size:.8rem;color:var(--soft);min-width:0}
.filters select,.filters input{
  font:inherit;font-size:.95rem;color:var(--ink);background:var(--page);padding:.3rem .45rem;
  border:1px solid var(--line);border-radius:6px;max-width:min(15rem,78vw);height:2.2rem}
output{font-size:.85rem;color:var(--soft);padding-bottom:.35rem}
.list{max-height:min(44rem,80vh);overflow-y:auto;border-bottom:1px solid var(--line)}
.case{border-top:1px solid var(--line)}
summary{
  cursor:pointer;padding:.55rem 0;display:flex;flex-wrap:wrap;gap:.15rem .7rem;
  align-items:baseline;font-size:.9rem;overflow-wrap:anywhere}
summary span{color:var(--soft)}
summary .first{flex:1 1 16rem;min-width:0}
summary .way{color:var(--c2);white-space:nowrap;min-width:7.2rem}
summary::before{content:"▸";color:var(--soft)}
details[open]>summary::before{content:"▾"}
details[open]>summary .first{display:none}
summary .lost{color:var(--red);background:none}
.case[open]{padding-bottom:1rem}
h4{font-size:.8rem;font-weight:600;color:var(--soft);margin:.6rem 0 .15rem}
.said{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.9rem;unicode-bidi:isolate}
.said.empty,.said small{color:var(--soft)}
.said small{display:block}
.thought,.call{border-left:3px solid var(--line);padding-left:.7rem;margin:.3rem 0}
.thought .said{color:var(--soft)}
.sides{display:grid;grid-template-columns:1fr 1fr;gap:1rem;margin-top:.6rem}
.side{min-width:0;background:var(--page);border-radius:8px;padding:.1rem .8rem .6rem}
.side.wrong h4{color:var(--red)}
.side.right h4{color:var(--c2)}
del{color:var(--red)}
ins{color:var(--c2);text-decoration-thickness:1px;text-underline-offset:.2em}
pre{font:.85rem/1.5 ui-monospace,monospace;margin:0}
@media(max-width:600px){
  main{padding:1.5rem .8rem 3rem}
  .card{padding:1rem .9rem}
  th,td{padding:.5rem}
  .sides{grid-template-columns:1fr}
  td small+small{white-space:normal}
  td small *{display:inline-block;white-space:nowrap}
  th:first-child{min-width:6.5rem}
}
"""
