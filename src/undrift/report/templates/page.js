"use strict";

// The toggle between the reader's own theme, light and dark: kept in an attribute, nowhere else.
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const names = ["auto", "light", "dark"];
  const show = (name) => {
    if (name === "auto") delete root.dataset.theme;
    else root.dataset.theme = name;
    button.textContent = `theme: ${name}`;
  };
  button.addEventListener("click", () => {
    const now = names.indexOf(root.dataset.theme ?? "auto");
    show(names[(now + 1) % names.length]);
  });
  show("auto");
  button.hidden = false;
})();

// A box whose content goes on to the right says so.
const tellMore = (() => {
  const look = (box) => box.classList.toggle("more", box.scrollWidth > box.clientWidth + 1);
  const watch = new ResizeObserver((seen) => { for (const each of seen) look(each.target); });
  return (root) => { for (const box of root.querySelectorAll(".scroll")) watch.observe(box); };
})();
tellMore(document);

// The answer browser. Whatever a model said is only ever set as text, never read as HTML.
(() => {
  const source = document.getElementById("answers-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const form = document.getElementById("filters"), fields = form.elements;
  const found = document.getElementById("found"), count = document.getElementById("count");
  const earlier = document.getElementById("earlier"), later = document.getElementById("later");
  const where = document.getElementById("page-number"), top = document.getElementById("answers");
  const NAMES = ["task", "run", "show", "error", "find"];
  const WORDS = { right: "right", form: "right but for form", partly: "partly right", wrong: "wrong" };
  const TURNED = ["changed for the worse", "changed for the better", ""];
  const PAGE = 20;
  let page = 0;

  const examples = data.tasks.flatMap((task) =>
    task.examples.map((example, index) => ({ ...example, task, number: index + 1 })));
  for (const example of examples) {
    const said = example.said.flatMap((both) => both ? both.map((each) => each ? each[0] : "") : []);
    example.text = [example.question, ...example.answers, ...said].join("\n").toLowerCase();
  }

  // Each takes an answer just learned and one at the end: [text, mark, error] or null.
  const SHOW = {
    worse: (learned, end) => learned?.[1] === "right" && end[1] !== "right",
    better: (learned, end) => Boolean(learned?.[1]) && learned[1] !== "right" && end[1] === "right",
    wrong: (learned, end) => end[1] === "wrong" || end[1] === "partly",
    form: (learned, end) => end[1] === "form",
    right: (learned, end) => end[1] === "right",
  };

  function turned(example) {
    for (const [rank, name] of ["worse", "better"].entries()) {
      if (example.said.some((both) => both && SHOW[name](...both))) return rank;
    }
    return 2;
  }
  examples.forEach((example) => { example.turned = turned(example); });
  examples.sort((a, b) => a.turned - b.turned);

  function disagree(example) {
    return new Set(example.said.filter(Boolean).map(([, end]) => end[1])).size > 1;
  }

  function matches(example, wanted) {
    if (wanted.task && example.task.name !== wanted.task) return false;
    if (wanted.find && !example.text.includes(wanted.find.toLowerCase())) return false;
    if (wanted.show === "disagree" && !disagree(example)) return false;
    const test = SHOW[wanted.show];
    return example.said.some((both, run) => both
      && (!wanted.run || data.runs[run] === wanted.run)
      && (!test || test(...both))
      && (!wanted.error || both[1][2] === wanted.error));
  }

  function make(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function numbers(text) {
    const box = text.match(/^\s*\[([\d.,\s]+)\]\s*$/)?.[1].split(",").map(Number);
    const inside = box?.length === 4 && box.every((x) => x >= 0 && x <= 1);
    return inside && box[0] <= box[2] && box[1] <= box[3] ? box : null;
  }

  function outline(box, className) {
    const [left, top, right, bottom] = box.map((x) => 100 * x), drawn = make("span", `box ${className}`);
    Object.assign(drawn.style, {
      left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%`,
    });
    return drawn;
  }

  function pictures(example, runs) {
    const seen = make("div", "seen");
    example.pictures.forEach((address, index) => {
      if (!address) {
        seen.append(make("span", "", "picture not embedded: it is in the run's folder"));
        return;
      }
      const frame = make("div", "picture"), image = make("img");
      image.src = address;
      image.loading = "lazy";
      image.alt = `picture ${index + 1} of ${example.task.name} ${example.number}`;
      frame.append(image);
      if (example.task.boxes && index === 0) {
        const boxes = (texts) => texts.map(numbers).filter(Boolean);
        const said = boxes(runs.map((run) => example.said[run][1][0]));
        frame.append(...said.map((box) => outline(box, "said")));
        frame.append(...boxes(example.answers).map((box) => outline(box, "truth")));
      }
      seen.append(frame);
    });
    if (example.task.boxes && example.pictures[0]) {
      seen.append(make("span", "", "solid: truth; dashed: at the end"));
    }
    return seen;
  }

  function answer(said) {
    const cell = make("td");
    if (!said) {
      cell.append(make("span", "none", "not asked"));
      return cell;
    }
    const [text, mark, error] = said;
    cell.append(text.trim() ? make("span", "", text) : make("span", "none", "(empty)"), " ");
    if (mark) cell.append(make("span", `mark ${mark}`, error ? `${WORDS[mark]}: ${error}` : WORDS[mark]));
    return cell;
  }

  function card(example, wanted) {
    const runs = [...data.runs.keys()].filter((run) => example.said[run]
      && (!wanted.run || data.runs[run] === wanted.run));
    const item = make("li"), words = make("div"), scroll = make("div", "scroll");
    const table = make("table"), head = make("tr"), body = make("tbody");
    words.append(
      make("p", "where soft", `${example.task.name} ${example.number} · ${example.id}`),
      make("p", `where ${["mark wrong", "mark right", ""][example.turned]}`, TURNED[example.turned]),
      make("h3", "", example.question),
      make("p", "expected", `Truth: ${example.answers.join(" | ")}`),
    );
    const chain = runs.length > 0 && runs.every((run) => example.course?.[run]);
    for (const name of chain ? ["adapter", "answer"] : ["run", "just learned", "at the end"]) {
      const cell = make("th", "", name);
      cell.scope = "col";
      head.append(cell);
    }
    const line = (title, said) => {
      const row = make("tr"), name = make("th", "", title);
      name.scope = "row";
      row.append(name, ...said.map(answer));
      body.append(row);
    };
    for (const run of runs) {
      if (chain) example.course[run].forEach(([stage, said]) => line(stage, [said]));
      else line(data.runs[run], example.said[run]);
    }
    const thead = make("thead");
    thead.append(head);
    table.append(thead, body);
    scroll.append(table);
    if (example.pictures.length) item.append(pictures(example, runs));
    else words.style.gridColumn = "1 / -1";
    item.append(words, scroll);
    return item;
  }

  function state() {
    return Object.fromEntries(NAMES.map((name) => [name, fields[name]?.value ?? ""]));
  }

  function draw() {
    const wanted = state(), hits = examples.filter((example) => matches(example, wanted));
    const pages = Math.max(1, Math.ceil(hits.length / PAGE));
    page = Math.min(page, pages - 1);
    const shown = hits.slice(page * PAGE, (page + 1) * PAGE);
    found.replaceChildren(...shown.map((example) => card(example, wanted)));
    tellMore(found);
    count.textContent = `${hits.length} of ${examples.length} examples`;
    where.textContent = hits.length ? `page ${page + 1} of ${pages}` : "";
    earlier.disabled = page === 0;
    later.disabled = page >= pages - 1;
  }

  function remember() {
    const kept = new URLSearchParams(Object.entries(state()).filter(([, value]) => value));
    if (page) kept.set("page", page + 1);
    history.replaceState(null, "", kept.size ? `#answers?${kept}` : "#answers");
  }

  function restore() {
    if (!location.hash.startsWith("#answers?")) return false;
    const kept = new URLSearchParams(location.hash.slice("#answers?".length));
    for (const name of NAMES) if (fields[name]) fields[name].value = kept.get(name) ?? "";
    for (const name of NAMES) if (fields[name]?.selectedIndex === -1) fields[name].value = "";
    page = Math.max(0, (parseInt(kept.get("page"), 10) || 1) - 1);
    draw();
    top.scrollIntoView();
    return true;
  }

  function turn(by) {
    page += by;
    draw();
    remember();
    top.scrollIntoView();
  }

  form.addEventListener("input", () => { page = 0; draw(); remember(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { page = 0; draw(); remember(); }));
  earlier.addEventListener("click", () => turn(-1));
  later.addEventListener("click", () => turn(1));
  addEventListener("hashchange", restore);
  document.addEventListener("click", (event) => {  // a link to the view that is shown already
    if (event.target.closest?.("a")?.getAttribute("href") === location.hash) restore();
  });
  if (!restore()) draw();
})();
