// A served page polls the server. It redraws running points in place, and reloads when one has finished.
import { data } from "./data.js";
import { announce, byId } from "./dom.js";
import { drawFiguresInView, markOutdated } from "./figures.js";
import { drawRunningPoints } from "./healing.js";
import { state } from "./state.js";

const FOCUS_KEY = "focus";
let serverLost = false;

/** Give the focus back after a reload, and poll. */
export function followServer() {
  byId(sessionStorage.getItem(FOCUS_KEY) || "none")?.focus({ preventScroll: true });
  sessionStorage.removeItem(FOCUS_KEY);
  poll();
}

async function poll() {
  const answer = await askServer();
  if (serverLost === Boolean(answer)) {
    announce(answer ? "" : "The server does not respond. This is the last state it sent.");
  }
  serverLost = !answer;
  if (answer && answer.version !== data.version && !isTyping()) {
    sessionStorage.setItem(FOCUS_KEY, document.activeElement.id);
    location.reload();
    return;
  }
  if (answer) showProgress(answer);
  setTimeout(poll, data.follow);
}

const askServer = () =>
  fetch("now")
    .then((response) => (response.ok ? response.json() : null))
    .catch(() => null);

const isTyping = () => document.activeElement.matches("input[type=search], select");

function showProgress({ running, words }) {
  byId("words").textContent = words;
  if (JSON.stringify(running) === JSON.stringify(data.running)) return;
  data.running = running;
  markOutdated("healing");
  if (state.run) return;
  drawRunningPoints();
  drawFiguresInView();
}
