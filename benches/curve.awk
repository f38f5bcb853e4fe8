# A picture of two curves, from the table of benches/curves.sh: operations a second against what grows, both axes logarithmic.
# To be read on a light and on a dark page: it brings its own ground.
BEGIN {
  FS = ","
  width = 640; height = 360; left = 64; right = 20; top = 44; bottom = 52
  colour["puts"] = "#b3541e"; colour["gets"] = "#1f6f8b"
}
NR > 1 { n++; x[n] = $1; puts[n] = $2; gets[n] = $4 }
END {
  first = log10(x[1]); span = log10(x[n]) - first
  high = 1; low = 9
  for (i = 1; i <= n; i++) { widen(puts[i]); widen(gets[i]) }
  high = ceil(high); low = floor(low - 0.2) # room for the figures below the lowest point
  printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"13\">\n", width, height
  printf "<rect width=\"%d\" height=\"%d\" fill=\"#fdfcfa\"/>\n", width, height
  for (decade = low; decade <= high; decade++) {
    line(left, at_y(decade), width - right, at_y(decade), "#d9d4cc")
    text(left - 8, at_y(decade) + 4, "end", short(10 ^ decade), "#444")
  }
  for (i = 1; i <= n; i++) {
    line(at_x(x[i]), top, at_x(x[i]), height - bottom, "#efebe4")
    text(at_x(x[i]), height - bottom + 18, "middle", short(x[i]), "#444")
  }
  text((left + width - right) / 2, height - 12, "middle", label, "#222")
  curve(puts, "puts"); curve(gets, "gets")
  text(left, 24, "start", "QUORUM operations a second:", "#222")
  text(left + 216, 24, "start", "puts", colour["puts"]); text(left + 258, 24, "start", "gets", colour["gets"])
  print "</svg>"
}
function log10(v) { return log(v) / log(10) }
function floor(v,   whole) { whole = int(v + 1e-9); return whole > v + 1e-9 ? whole - 1 : whole }
function ceil(v) { return -floor(-v + 1e-9) }
function widen(v) { v = log10(v > 1 ? v : 1); if (v > high) high = v; if (v < low) low = v }
function at_x(v) { return left + 24 + (log10(v) - first) / (span > 0 ? span : 1) * (width - left - right - 48) }
function at_y(decade) { return height - bottom - (decade - low) / (high > low ? high - low : 1) * (height - top - bottom) }
function line(x1, y1, x2, y2, stroke) {
  printf "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x1, y1, x2, y2, stroke
}
function text(px, py, anchor, words, fill) {
  printf "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\">%s</text>\n", px, py, anchor, fill, words
}
function short(v) { return v >= 1000000 ? v / 1000000 "M" : v >= 1000 ? v / 1000 "k" : v "" }
function curve(values, what,   i, path) {
  for (i = 1; i <= n; i++) path = path sprintf("%.1f,%.1f ", at_x(x[i]), at_y(log10(values[i])))
  printf "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2.5\"/>\n", path, colour[what]
  for (i = 1; i <= n; i++) {
    printf "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n", at_x(x[i]), at_y(log10(values[i])), colour[what]
    text(at_x(x[i]), at_y(log10(values[i])) + (what == "puts" ? 20 : -10), "middle", number(values[i]), colour[what])
  }
}
function number(v) { return v >= 10000 ? sprintf("%.0fk", v / 1000) : v >= 1000 ? sprintf("%.1fk", v / 1000) : sprintf("%.0f", v) }
