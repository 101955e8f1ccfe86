"use strict";

// Lists the endpoints of openapi.json by tag. Texts are set as text, never as HTML.

function element(name, text, className) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function endpoint(path, method, operation) {
  const row = element("details");
  const title = element("summary");
  title.append(element("b", method.toUpperCase()), element("code", path), element("span", operation.summary));
  if (operation.deprecated) title.append(element("i", "deprecated"));
  row.append(title, element("p", operation.description));
  const list = element("ul");
  for (const parameter of operation.parameters || []) {
    const need = parameter.required ? "required" : "optional";
    list.append(element("li", `${parameter.name} (${parameter.in}, ${need}): ${parameter.description || ""}`));
  }
  for (const [status, answer] of Object.entries(operation.responses)) {
    list.append(element("li", `${status}: ${answer.description}`));
  }
  row.append(list);
  return row;
}

async function show() {
  const main = document.getElementById("endpoints");
  const answer = await fetch("openapi.json");
  if (!answer.ok) {
    main.textContent = `openapi.json could not be read (status ${answer.status}).`;
    return;
  }
  const api = await answer.json();
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = (operation.tags || ["Other"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(endpoint(path, method, operation));
    }
  }
  main.replaceChildren();
  for (const [tag, rows] of groups) main.append(element("h2", tag), ...rows);
}

show();
