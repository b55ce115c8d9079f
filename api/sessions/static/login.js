"use strict";
// Who comes here by a link of another site may be logged in already: the browser sent no cookie that way, and does now.
fetch("/login/session").then(async (answer) => {
  const session = answer.ok ? await answer.json() : null;
  if (session !== null && session.csrf_token !== null && document.querySelector(".problem") === null) {
    window.location.replace(document.querySelector("input[name=next]").value);
  }
});
