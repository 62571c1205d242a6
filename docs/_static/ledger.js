// Filters of the ledger's table. The choice is kept in the address, so that it can be linked to.
(() => {
  const form = document.getElementById("ledger-filters");
  if (!form) return;
  const rows = [...document.querySelectorAll("table.overview tr.claim")];
  const fields = [...form.querySelectorAll("select")];

  function apply() {
    const chosen = fields.filter((field) => field.value);
    for (const row of rows) {
      row.hidden = !chosen.every((f) => JSON.parse(row.dataset[f.name]).includes(f.value));
    }
    for (const body of document.querySelectorAll("table.overview tbody")) {
      body.hidden = !body.querySelector("tr.claim:not([hidden])");
    }
    const left = rows.filter((row) => !row.hidden).length;
    form.querySelector("output").value = `${left} of ${rows.length} claims`;
    const query = new URLSearchParams(chosen.map((f) => [f.name, f.value])).toString();
    try {
      history.replaceState(null, "", (query ? `?${query}` : location.pathname) + location.hash);
    } catch {
      // A page opened from a file may not change its address.
    }
  }

  const asked = new URLSearchParams(location.search);
  for (const field of fields) {
    const value = asked.get(field.name);
    if ([...field.options].some((option) => option.value === value)) field.value = value;
  }
  form.addEventListener("change", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
