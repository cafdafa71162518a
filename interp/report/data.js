"use strict";
// What the page holds: packed data, and numbers of figures as arrays.

const holder = (id) => document.getElementById(id)?.textContent.trim() ?? "";

// A loop: `Uint8Array.from` with a function takes many times as long.
function bytesOf(base64) {
  const packed = atob(base64), bytes = new Uint8Array(packed.length);
  for (let at = 0; at < packed.length; at += 1) bytes[at] = packed.charCodeAt(at);
  return bytes;
}

async function unpacked(id) {
  const stream = new Blob([bytesOf(holder(id))]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function unpackedJson(id) {
  return holder(id) ? JSON.parse(new TextDecoder().decode(await unpacked(id))) : null;
}

const KINDS = { f4: Float32Array, f8: Float64Array, i1: Int8Array, i2: Int16Array, i4: Int32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };

// plotly.py writes arrays as {dtype, bdata, shape}; here they become plain (nested) arrays.
function decoded(value) {
  if (Array.isArray(value)) return value.map(decoded);
  if (!value || typeof value !== "object") return value;
  if (value.bdata === undefined) return Object.fromEntries(Object.entries(value).map(([name, own]) => [name, decoded(own)]));
  const flat = Array.from(new KINDS[value.dtype](bytesOf(value.bdata).buffer));
  const shape = String(value.shape ?? flat.length).split(",").map(Number);
  return shape.slice(1).reverse().reduce((rows, size) => {
    const out = [];
    for (let at = 0; at < rows.length; at += size) out.push(rows.slice(at, at + size));
    return out;
  }, flat);
}

// Numbers as the page writes them: three significant digits.
function shown(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "undefined";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-4 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

const make = (tag, fields = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};

// Text for plotly, which reads markup: shown character by character.
const literal = (text) => String(text).replace(/[&<>{}]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "}": "&#125;" })[c]);

// The address's last part: `#name?key=value&...`.
const address = {
  read() {
    const [name, words = ""] = location.hash.slice(1).split("?");
    return { name: decodeURIComponent(name), asked: Object.fromEntries(new URLSearchParams(words)) };
  },
  write(name, asked = {}) {
    const words = new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== "" && value !== undefined)).toString();
    history.replaceState(null, "", `#${encodeURIComponent(name)}${words ? `?${words}` : ""}`);
  },
};

function announce(words) {
  document.getElementById("announced").textContent = words;
}
