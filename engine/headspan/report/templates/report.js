"use strict";
const page = document.documentElement;
window.addEventListener("error", (event) => { page.dataset.error = event.message; });

// An element with its children.
const part = (name, ...children) => {
  const element = document.createElement(name);
  element.append(...children);
  return element;
};

// A click shows an image and its map at full size; a further click or Escape closes them.
const large = document.getElementById("large");
document.querySelector("main").addEventListener("click", (event) => {
  const button = event.target.closest("figure button");
  if (!button) return;
  const images = part("div", ...[...button.children].map((child) => child.cloneNode(true)));
  const caption = button.nextElementSibling;
  large.replaceChildren(images, ...(caption ? [caption.cloneNode(true)] : []));
  large.showModal();
});
large.addEventListener("click", () => large.close());
