//! The page's style sheet.

/// Light, and dark where the reader's system is. The eight colours of lines are told apart by people who see few colours, too.
pub const STYLE: &str = r#"
:root { color-scheme: light dark; --page: #f7f7f5; --card: #ffffff; --ink: #1c1e21; --soft: #62676e; --line: #dcdedf; --grid: #ececea;
  --made: #e3f1e7; --made-line: #4d9266; --before: #eef1f5; --before-line: #93a1b2; --missing: #fbeaea; --missing-line: #c76a6a; --warn: #8f2323;
  --c0: #2868b0; --c1: #c8641b; --c2: #2c8a5b; --c3: #a3478f; --c4: #8a7410; --c5: #3f9db5; --c6: #c23b4b; --c7: #6b6f76; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15171a; --card: #1d2024; --ink: #e7e8ea; --soft: #9ea4ac; --line: #363b41; --grid: #2a2e33;
    --made: #1d3327; --made-line: #5eae7e; --before: #262b32; --before-line: #667486; --missing: #3a2224; --missing-line: #cf7679; --warn: #ee9a9a;
    --c0: #6ea8e8; --c1: #ee9a5b; --c2: #64c493; --c3: #d68ac6; --c4: #cdb64f; --c5: #74c9dd; --c6: #ef7f8b; --c7: #a9aeb5; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 6px; font-weight: 650; }
h2 { font-size: 19px; margin: 44px 0 12px; font-weight: 650; }
h3 { font-size: 16px; margin: 28px 0 10px; font-weight: 600; }
h4 { font-size: 13px; min-height: 1.5em; margin: 14px 0 6px; font-weight: 600; color: var(--soft); }
.facts { color: var(--soft); margin: 0; display: flex; flex-wrap: wrap; gap: 2px 22px; font-size: 13.5px; }
.facts b { font-weight: 550; color: var(--ink); overflow-wrap: anywhere; }
.failed { border-left: 4px solid var(--missing-line); background: var(--missing); color: var(--warn); padding: 10px 14px; border-radius: 4px; overflow-wrap: anywhere; }
.card, figure.chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; margin: 0 0 16px; }
.scroll { overflow-x: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 16px; }
figure.chart { margin: 0; }
figcaption { font-weight: 600; font-size: 14px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 12.5px; color: var(--soft); margin-top: 2px; }
.legend .key { width: 18px; height: 10px; margin-right: 6px; }
figure svg { width: 100%; height: auto; display: block; margin-top: 6px; }
.legend svg { display: inline-block; }
svg text { fill: var(--ink); font-family: inherit; }
.tick { font-size: 11px; fill: var(--soft) !important; font-variant-numeric: tabular-nums; }
.tick.y { text-anchor: end; } .tick.x { text-anchor: middle; }
.grid { stroke: var(--grid); } .axis { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .key line { stroke-width: 2; }
.seldom { stroke-dasharray: 5 3; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); } .c6 { stroke: var(--c6); } .c7 { stroke: var(--c7); }
.told { stroke: var(--soft); stroke-dasharray: 3 3; } .whisker { stroke-width: 2; } .label { font-size: 12px; text-anchor: end; }
circle.dot { stroke: none; } circle.dot.c0 { fill: var(--c0); } circle.dot.c1 { fill: var(--c1); } figure.wide { margin: 0 0 16px; }
circle.mark { fill: var(--card); stroke-width: 1.8; } circle.touch { fill: transparent; stroke: none; } circle:hover { stroke: var(--ink); stroke-width: 1.5; }
.graph { max-width: none; display: block; margin: 0 auto; }
.stage rect { stroke-width: 1.2; } .made rect { fill: var(--made); stroke: var(--made-line); }
.before rect { fill: var(--before); stroke: var(--before-line); } .missing rect { fill: var(--missing); stroke: var(--missing-line); stroke-dasharray: 4 3; }
.stage .name { font-size: 14px; font-weight: 600; } .stage .time { font-size: 12.5px; text-anchor: end; font-variant-numeric: tabular-nums; }
.stage .kind { font-size: 12px; fill: var(--soft); } .stage .hash { font: 11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: var(--soft); }
.edge { fill: none; stroke: var(--before-line); stroke-width: 1.3; opacity: .75; }
.states { display: flex; gap: 18px; font-size: 12.5px; color: var(--soft); margin: 12px 0 0; flex-wrap: wrap; }
.states i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; border: 1.2px solid; }
.states .made { background: var(--made); border-color: var(--made-line); } .states .before { background: var(--before); border-color: var(--before-line); }
.states .missing { background: var(--missing); border-color: var(--missing-line); }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
thead th { color: var(--soft); font-weight: 550; white-space: nowrap; } tbody td:not(:first-child) { white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 6px 36px; margin-top: 8px; }
.figures table { width: 100%; } .figures th { font-weight: 450; color: var(--soft); } .figures tbody td:not(:first-child) { white-space: normal; text-align: right; padding-right: 0; } .aside { color: var(--soft); font-size: 12px; }
code { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.summary { display: flex; flex-wrap: wrap; gap: 8px 34px; margin: 0 0 14px; } .summary div { font-size: 12.5px; color: var(--soft); }
.summary b { display: block; font-size: 18px; font-weight: 600; color: var(--ink); font-variant-numeric: tabular-nums; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 14px 22px; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 12.5px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.pair h4 { margin: 0 0 4px; } details:not(.card) { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); font-size: 13px; } details pre { margin-top: 8px; }
.empty { color: var(--soft); font-style: italic; }
@media print { .card, figure.chart { break-inside: avoid; } }
"#;
