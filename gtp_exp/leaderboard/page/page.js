"use strict";
// A link to a run must open it and what it is folded into: browsers leave a closed <details> closed.
function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  for (let node = target; node; node = node.parentElement) {
    if (node instanceof HTMLDetailsElement) node.open = true;
  }
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", openTarget);
openTarget();

const cards = Array.from(document.querySelectorAll("#cards > .card"));
if (cards.length) {
  const search = document.getElementById("search");
  const chooser = document.getElementById("chooser");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const texts = cards.map((card) => card.textContent.toLowerCase());
  const PAGE = 12;
  let shown = PAGE;
  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const who = chooser.value;
    let hits = 0;
    cards.forEach((card, i) => {
      const hit = words.every((word) => texts[i].includes(word)) &&
        (who === "" || card.dataset.choosers.includes(` ${who} `));
      card.hidden = !hit || hits >= shown;
      if (hit) hits += 1;
    });
    count.textContent = hits === 1 ? "1 example" : `${hits} examples`;
    more.hidden = hits <= shown;
  }
  for (const input of [search, chooser]) {
    input.addEventListener("input", () => { shown = PAGE; update(); });
  }
  more.addEventListener("click", () => { shown += 4 * PAGE; update(); });
  update();
}
