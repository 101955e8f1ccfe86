"use strict";

// Shows the log lines of this page's own address; ?refresh=N reads them again every N seconds.

const asked = new URLSearchParams(location.search);
const lines = document.getElementById("lines");

async function read() {
  asked.set("text", "true");
  const answer = await fetch(`?${asked}`);
  lines.textContent = await answer.text();
  window.scrollTo(0, document.body.scrollHeight);
}

const seconds = Number(asked.get("refresh"));
read();
if (seconds > 0) setInterval(read, 1000 * Math.max(seconds, 3));
