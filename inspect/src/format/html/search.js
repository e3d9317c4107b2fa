"use strict";
(() => {
  const form = document.getElementById("search");
  const found = document.getElementById("found");
  const number = (text) => BigInt("0x" + text.trim().replace(/^0x/i, "").replace(/_/g, ""));
  const hex = (value) => "0x" + value.toString(16);
  const within = (element, name, address) => {
    const start = BigInt("0x" + element.dataset[name]);
    const bytes = BigInt("0x" + (element.dataset.bytes || "1000"));
    return address >= start && address - start < bytes;
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    document.querySelectorAll(".hit").forEach((element) => element.classList.remove("hit"));
    let address;
    try {
      address = number(document.getElementById("address").value);
    } catch {
      found.textContent = "That is no number in hex.";
      return;
    }
    const kind = document.getElementById("kind").value;
    const hits = [...document.querySelectorAll(`[data-${kind}]`)].filter((element) => within(element, kind, address));
    const lines = [];
    for (const hit of hits) {
      hit.classList.add("hit");
      for (let box = hit.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
      if (hit.matches("tr.range")) {
        const [from, to] = kind === "iova" ? ["iova", "phys"] : ["phys", "iova"];
        const other = number(hit.dataset[to]) + address - number(hit.dataset[from]);
        const words = kind === "iova" ? `becomes ${hex(other)}` : `is reached by ${hex(other)}`;
        lines.push(`domain ${hit.dataset.domain}: ${words}`);
      } else if (hit.matches("tr.preserved")) {
        lines.push("preserved");
      } else if (hit.matches(".table")) {
        lines.push(`a table: ${hit.textContent.trim()}`);
      }
    }
    found.textContent = lines.length ? [...new Set(lines)].join(" · ") : "Nothing on this page holds that address.";
    const first = hits.find((hit) => !hit.closest("svg")) || hits[0];
    if (first) first.scrollIntoView({ block: "center", behavior: "smooth" });
  });
})();
