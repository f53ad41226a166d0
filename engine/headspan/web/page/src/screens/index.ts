/** The page's screens by their names in addresses, and those that the top bar leads to. */

import type { Component } from "svelte";
import type { StoreSummary } from "../api/types";

/** What every screen is given: the store that the address names. */
export interface ScreenProps {
  store: StoreSummary;
}

import Compare from "./Compare.svelte";
import Contrast from "./Contrast.svelte";
import Descriptions from "./Descriptions.svelte";
import Feature from "./Feature.svelte";
import Features from "./Features.svelte";
import Head from "./Head.svelte";
import Image from "./Image.svelte";
import Property from "./Property.svelte";
import Selection from "./Selection.svelte";
import Store from "./Store.svelte";
import Text from "./Text.svelte";
import WhatIf from "./WhatIf.svelte";

export const SCREENS: Record<string, Component<ScreenProps>> = {
  "": Store,
  head: Head,
  text: Text,
  selection: Selection,
  image: Image,
  contrast: Contrast,
  property: Property,
  compare: Compare,
  "what-if": WhatIf,
  features: Features,
  feature: Feature,
  descriptions: Descriptions,
};

/** The screens of the top bar: name in the address, and title. */
export const BAR: readonly (readonly [string, string])[] = [
  ["", "Heads"],
  ["text", "Text"],
  ["image", "Image"],
  ["contrast", "Contrast"],
  ["property", "Property"],
  ["selection", "Selection"],
  ["features", "Features"],
  ["descriptions", "Descriptions"],
  ["what-if", "What if"],
  ["compare", "Compare"],
];
