"use strict";
// The film stands still until asked for, and again when asked: an animated picture has no controls of its own.
for (const button of document.querySelectorAll("#film-button")) {
  const film = document.getElementById("film");
  let plays = false;
  button.addEventListener("click", () => {
    plays = !plays;
    film.src = plays ? film.dataset.film : film.dataset.still;
    button.textContent = plays ? "Stop the film" : "Play the film";
  });
}
