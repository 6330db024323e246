// What the browser keeps, so that the page works without a network: large files, downloaded once, and the page itself.

const [PAGE, FILES] = ["kdlib-page", "kdlib-files"];

// Browsers keep files only for pages from localhost or https, and none where the user blocks a site's data or, with some
// of them, in a private window.
export const canKeep = await keepsFiles();

async function keepsFiles() {
  if (!("caches" in globalThis && "serviceWorker" in navigator)) return false;
  try {
    await caches.open(FILES);
    return true;
  } catch {
    return false;
  }
}

// The contents of a file, from the cache or else from the network. asset: {url, bytes}. progress(share from 0 to 1).
export async function fetchAsset(asset, progress = () => {}) {
  const cache = canKeep ? await caches.open(FILES) : null;
  const kept = await cache?.match(asset.url);
  const response = kept ?? (await fetch(asset.url));
  if (!response.ok) throw new Error(`${asset.url} could not be loaded (${response.status}). Reload the page.`);
  const type = response.headers.get("Content-Type");
  const bytes = await read(response, asset, progress);
  if (cache && !kept) {
    try {
      await cache.put(asset.url, new Response(bytes, { headers: { "Content-Type": type } }));
    } catch (error) {
      console.warn(`The browser has no room to keep ${asset.url} (${error.message}).`);
    }
  }
  return bytes;
}

async function read(response, asset, progress) {
  const bytes = new Uint8Array(asset.bytes);
  const reader = response.body.getReader();
  let length = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (length + part.value.length > bytes.length) break;
    bytes.set(part.value, length);
    length += part.value.length;
    progress(length / bytes.length);
  }
  if (length !== bytes.length) throw new Error(`${asset.url} is not complete. Reload the page.`);
  return bytes;
}

// Keep these files and the page's own, and nothing that an earlier version has kept. told(number of files kept).
export async function keep(assets, page, told) {
  const files = await caches.open(FILES);
  const wanted = new Set(assets.map(asset => new URL(asset.url, location.href).href));
  for (const request of await files.keys()) if (!wanted.has(request.url)) await files.delete(request);
  for (const [number, asset] of assets.entries()) {
    told(number);
    if (!(await files.match(asset.url))) await fetchAsset(asset);
  }
  const cache = await caches.open(PAGE);
  await cache.addAll(page.map(url => new Request(url, { cache: "no-cache" }))); // all of one version, or none
  return (await Promise.all(assets.map(asset => files.match(asset.url)))).every(Boolean);
}
