// Asks the server about the runs, and waits while it prepares a model.

const POLL_MILLISECONDS = 400;
const HEADERS = { "X-Requested-With": "explore" }; // which pages of other sites cannot send

/* Return the answer of `route`; call `onPreparing` until the server has one. Errors are answers. */
export async function ask(route, parameters, signal, onPreparing = () => {}) {
  for (;;) {
    const response = await fetch(`/explore/api/${route}?${new URLSearchParams(parameters)}`, { signal, headers: HEADERS });
    if (!response.ok) return { error: `the dashboard answered with status ${response.status}: see its terminal` };
    const answer = await response.json();
    if (!answer.preparing) return answer;
    onPreparing();
    await pause(signal);
  }
}

function pause(signal) {
  return new Promise((resume, fail) => {
    const timer = setTimeout(resume, POLL_MILLISECONDS);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      fail(signal.reason);
    }, { once: true });
  });
}

/* Return a description of `error`; null if a later request has replaced the one that failed. */
export function describeFailure(error) {
  if (error.name === "AbortError") return null;
  if (error instanceof TypeError && error.message.includes("fetch")) {
    return "the dashboard does not answer: is it still running?";
  }
  throw error;
}
