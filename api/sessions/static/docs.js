"use strict";
// The page of the API's documentation: says who is logged in, and adds the session's token to requests that are tried.

async function currentSession() {
  const answer = await fetch("/login/session");
  return answer.ok ? answer.json() : null;
}

function showSession(session) {
  const bar = document.getElementById("session");
  if (session === null) {
    const link = document.createElement("a");
    link.href = "/login?next=/docs";
    link.textContent = "Log in";
    bar.append(link);
  } else if (session.person !== null) {
    const name = document.createElement("span");
    name.textContent = session.person;
    const button = document.createElement("button");
    button.textContent = "Log out";
    button.addEventListener("click", async () => {
      await fetch("/logout", { method: "POST", headers: { "X-CSRF-Token": session.csrf_token } });
      window.location.reload();
    });
    bar.append(name, button);
  }
}

async function show() {
  const session = await currentSession();
  showSession(session);
  SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    presets: [SwaggerUIBundle.presets.apis],
    showMutatedRequest: false,
    requestInterceptor: (request) => {
      if (session !== null && session.csrf_token !== null && new URL(request.url, location).origin === location.origin) {
        request.headers["X-CSRF-Token"] = session.csrf_token;
      }
      return request;
    },
  });
}

show();
