// The service worker: the page without a network. Files whose names change with their contents come from what store.js
// has kept; the page itself comes from its host, so that it is never an old one, and is the kept one without a network.

const isFile = url => url.startsWith(new URL("files/", self.registration.scope).href);

const keptFirst = async request => (await caches.match(request)) ?? fetch(request);

async function hostFirst(request) {
  try {
    return await fetch(request);
  } catch (error) {
    const kept = await caches.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", event => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", event => {
  const { request } = event;
  if (request.method !== "GET" || new URL(request.url).origin !== self.location.origin) return;
  event.respondWith(isFile(request.url) ? keptFirst(request) : hostFirst(request));
});
