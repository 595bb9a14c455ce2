// Formulas are drawn by MathJax from this site, and only where there are any.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex", enableMenu: false },
};
if (document.querySelector(".arithmatex")) {
  const script = document.createElement("script");
  script.src = new URL("tex-svg.js", document.currentScript.src);
  script.async = true;
  document.head.appendChild(script);
}
